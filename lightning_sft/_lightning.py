"""Every private or untyped attribute of Lightning that the package touches, in one place.

tests/test_private_lightning.py fails loudly when Lightning changes one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor


def made_by_cli() -> bool:
    """Return whether a module is being built by LightningCLI, which hands over its settings as plain data."""
    return _given_hyperparameters.get() is not None


def attached_trainer(module: LightningModule) -> Trainer | None:
    """Return the trainer of a module, or None; the public property raises when there is none."""
    return module._trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of a trainer: public, but set by a connector that type checkers do not see."""
    untyped: Any = trainer
    return cast("list[Callback]", untyped.callbacks)


def log_interval(trainer: Trainer) -> int:
    """Return ``log_every_n_steps``, at least 1: public, but set by a connector that type checkers do not see."""
    untyped: Any = trainer
    return max(int(untyped.log_every_n_steps), 1)


def all_gather(module: LightningModule) -> Callable[[Tensor], Tensor]:
    """Return the module's gather over ranks, for tensors: (...) to (world_size, ...)."""
    return cast("Callable[[Tensor], Tensor]", module.all_gather)


def saves_shards(strategy: ModelParallelStrategy) -> bool:
    """Return whether checkpoints are folders with a file of each rank."""
    return strategy._save_distributed_checkpoint


class ConfigurationWins:
    """A mixin for LightningCLI: a checkpoint's stored settings do not override files and command line."""

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as the user gave it."""


def accumulation(trainer: Trainer) -> int | str:
    """Return ``accumulate_grad_batches``, or the schedule of epochs that a GradientAccumulationScheduler follows."""
    schedules = [c.scheduling for c in callbacks_of(trainer) if isinstance(c, GradientAccumulationScheduler)]
    several = [s for s in schedules if len(s) > 1]
    return str(several[0]) if several else trainer.accumulate_grad_batches
