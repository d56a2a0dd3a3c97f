"""LastCheckpoint: keeps last.ckpt, the checkpoint to resume from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from lightning_sft.errors import UserError


class LastCheckpoint(Checkpoint):
    """Keep ``checkpoints/last.ckpt`` in the run's folder up to date.

    It is written every ``every_n_train_steps`` optimizer steps, after every validation, at the end of an epoch and at
    the last step, whether or not a metric improved, always between two optimizer steps; each time it replaces the one
    before, atomically. What the logger
    holds is flushed first, so that the curves of a killed run reach to its checkpoint.

    Args:
        every_n_train_steps: optimizer steps between two writes; None leaves the other occasions.

    Raises:
        UserError: a number of steps below 1.
    """

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise UserError(
                f"LastCheckpoint got every_n_train_steps={every_n_train_steps}. Allowed: 1 or more, or null."
            )
        self.every_n_train_steps = every_n_train_steps
        self._folder: Path | None = None
        self._saved_at = -1
        self._in_window = self._waiting = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = Path(trainer.strategy.broadcast(str(_checkpoint_folder(trainer))))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, self.every_n_train_steps
        due = every is not None and step > 0 and step % every == 0
        stops = trainer.should_stop and step != self._saved_at  # a time limit, early stopping: perhaps within a step
        ends = trainer.is_last_batch or step == trainer.max_steps or stops
        mid = (batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch
        self._in_window = mid and not stops
        # Here and not in on_train_epoch_end: a checkpoint from there, resumed, would train the epoch's end again.
        if due or ends or self._waiting:
            self._save(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._saved_at = -1  # again, if the step was saved before: now with what the validation has shown
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        # In the middle of an optimizer step the gradient gathered so far would be lost: wait for the step's end.
        self._waiting = self._in_window
        if self._in_window or trainer.global_step == self._saved_at or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self._folder is not None
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.flush()
        trainer.save_checkpoint(self._folder / "last.ckpt", weights_only=False)
        self._saved_at = trainer.global_step


def _checkpoint_folder(trainer: Trainer) -> Path:
    """Return the folder that Lightning's ModelCheckpoint takes by default, so that a run has one."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir) / "checkpoints"
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version, "checkpoints")
