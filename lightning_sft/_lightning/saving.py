"""Private attributes of Lightning around the writing of checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.strategies import Strategy


def set_base_checkpoint_io(strategy: Strategy, checkpoint_io: CheckpointIO) -> None:
    """Put a checkpoint IO in the place of Lightning's plain one, inside a wrapper such as AsyncCheckpointIO, too.

    Another one, which the user chose, stays.
    """
    present: CheckpointIO | None = strategy.checkpoint_io
    if type(present) is TorchCheckpointIO:
        strategy.checkpoint_io = checkpoint_io
    while isinstance(present, _WrappingCheckpointIO):
        if type(present.checkpoint_io) is TorchCheckpointIO:
            present._checkpoint_io = checkpoint_io
        present = present.checkpoint_io


def around_saving(strategy: Strategy, save: Callable[[Any, dict[str, Any], str | Path, Any], None]) -> None:
    """Let ``save`` do what the strategy's public ``save_checkpoint`` does, whoever replaced that before.

    Args:
        strategy: its class's own method is there for ``save`` to call.
        save: gets the strategy, the checkpoint, the path and the storage options, on every rank.
    """

    def save_checkpoint(checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None) -> None:
        save(strategy, checkpoint, filepath, storage_options)

    strategy.save_checkpoint = save_checkpoint  # type: ignore[method-assign]


def save_when_validated(callback: ModelCheckpoint) -> None:
    """Let a ModelCheckpoint save right after the validation whose metric it watches, and not at the epoch's end.

    It is the same step and the same metric, but what is stored after the validation then knows of it.
    """
    if callback._save_on_train_epoch_end is None and callback.monitor is not None and "val" in callback.monitor:
        callback._save_on_train_epoch_end = False


def watch_swaps(callback: WeightAveraging) -> None:
    """Let a callback know whether the module has the average weights just now, as in a validation."""
    untyped: Any = callback
    if getattr(untyped, "lightning_sft_swapped", None) is None:
        swap = untyped._swap_models
        untyped.lightning_sft_swapped = False

        def swap_models(module: LightningModule) -> None:
            swap(module)
            untyped.lightning_sft_swapped = not untyped.lightning_sft_swapped

        untyped._swap_models = swap_models


def swap_back(trainer: Trainer, module: LightningModule) -> None:
    """Give the module its own weights back where an interrupted validation left the average ones."""
    untyped: Any = trainer
    for callback in untyped.callbacks:
        if getattr(callback, "lightning_sft_swapped", False):
            callback._swap_models(module)
