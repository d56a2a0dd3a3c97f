"""Optimizer steps: sums over micro-batches and ranks, the exact factor, optimizers and groups, strategies.

`StepAccumulator` makes gradients exact to the token in LightningModules and loops that are not this package's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_sft._lightning import step_is_complete
    from lightning_sft.training.accumulation import StepAccumulator

__all__ = ["StepAccumulator", "step_is_complete"]

_HOMES = {"StepAccumulator": "lightning_sft.training.accumulation", "step_is_complete": "lightning_sft._lightning"}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for: the command line's signals must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
