"""Averaged weights in checkpoints: WeightAveraging and its kin, beside an adapter whose base is left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_sft.models.frozen import without_frozen

#: where WeightAveraging puts the weights that are trained on; the average is the checkpoint's ``state_dict``
_CURRENT = "current_model_state"
#: where StochasticWeightAveraging puts the average, in its own state
_AVERAGE = "average_model_state"


def drop_frozen(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Leave the frozen base of an adapter out of a checkpoint, wherever a callback has put a copy of it."""
    for owner, key in _places(checkpoint):
        owner[key] = without_frozen(owner[key], module)


def complete(checkpoint: dict[str, Any], module: nn.Module, callbacks: Sequence[Callback]) -> None:
    """Bring the frozen base back into a checkpoint that averaging callbacks are about to load, which ask for all of it.

    Args:
        checkpoint: about to be restored in a fit; changed.
        module: holds the base.
        callbacks: of the fit. Without a WeightAveraging among them the fit goes on from the weights that were trained
            on and not from their average, with a warning.
    """
    if _CURRENT in checkpoint and not any(isinstance(callback, WeightAveraging) for callback in callbacks):
        rank_zero_warn(
            "The checkpoint holds averaged weights, and this run has no WeightAveraging callback: it goes on from the "
            "weights that were trained on, and the average is left behind. Add the callback to keep it."
        )
        checkpoint["state_dict"] = checkpoint.pop(_CURRENT)
        return
    whole = module.state_dict()
    for owner, key in _places(checkpoint):
        if owner is not checkpoint or _CURRENT in checkpoint:
            owner[key] = {**{k: v for k, v in whole.items() if k not in owner[key]}, **owner[key]}


def _places(checkpoint: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Return the dictionaries and keys under which a checkpoint holds weights of the module."""
    states = [state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, dict)]
    found = [(checkpoint, key) for key in ("state_dict", _CURRENT) if key in checkpoint]
    return found + [(state, _AVERAGE) for state in states if isinstance(state.get(_AVERAGE), dict)]
