"""A peft model with its adapters out of the way, whoever wrapped it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn


def adapter_layers(model: nn.Module) -> list[Any]:
    """Return the modules in which peft keeps adapters and trained copies."""
    return [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]


def base_is_frozen(model: nn.Module) -> bool:
    """Return whether there are adapters and nothing but them trains, so that the start is the model without them."""
    adapted = any(isinstance(m, BaseTunerLayer) for m in model.modules())
    ours = {id(p) for m in adapter_layers(model) for p in m.parameters()}
    return adapted and not any(p.requires_grad and id(p) not in ours for p in model.parameters())


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Take adapters, and copies of modules that they train, out of the way inside the context."""
    layers = [layer for layer in adapter_layers(model) if not layer.disable_adapters]
    trained = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, requires_grad in trained:  # peft switches all of the active adapter's on
            parameter.requires_grad_(requires_grad)
