"""Sums in float64 wherever the numbers are: Apple's GPUs have no float64, so theirs are summed up on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric
from typing_extensions import override

#: devices without float64
NARROW = frozenset({"mps"})


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on its device or, where that has no float64, on the CPU."""
    return tensor.to(wide_device(tensor.device), torch.float64)


def wide_device(device: torch.device | str) -> torch.device:
    """Return the device on which float64 sums of ``device`` are kept."""
    device = torch.device(device)
    return torch.device("cpu") if device.type in NARROW else device


class WideMetric(Metric):
    """A metric with sums in float64, which stay on the CPU where the module's device has no float64."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.set_dtype(torch.float64)

    @override
    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> Module:
        """Move or convert the states, unless they are to go where they cannot be."""
        return self if fn(torch.zeros(())).device.type in NARROW else super()._apply(fn, exclude_state)
