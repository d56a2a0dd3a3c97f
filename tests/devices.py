"""Devices that tests run on: the CPU always, and CUDA where there is one."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch

#: counted without a CUDA context, so that this process can still fork
CUDA_DEVICES = torch.cuda.device_count()
DEVICES = ["cpu"] if not CUDA_DEVICES else ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def needs(package: str) -> pytest.MarkDecorator:
    """Return a mark that skips where a package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs the package {package}")


def RunIf(*, min_cuda_gpus: int) -> Callable[[Any], Any]:
    """Return a decorator that marks a test ``gpu``, and skips it where there are fewer CUDA devices."""
    few = pytest.mark.skipif(min_cuda_gpus > CUDA_DEVICES, reason=f"needs {min_cuda_gpus} CUDA devices")
    return lambda test: pytest.mark.gpu(few(test))
