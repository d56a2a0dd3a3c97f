"""LastCheckpoint: the one to resume from, also when a signal ends the run."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from typing_extensions import override

from lightning_sft._lightning import callbacks_of
from lightning_sft._lightning.loops import leave_signals_alone, requeue_signal, validate_again
from lightning_sft._lightning.saving import save_when_validated, swap_back, watch_swaps
from lightning_sft.checkpoints.best import keep_best
from lightning_sft.checkpoints.io import write_safely, writes_behind
from lightning_sft.checkpoints.runs import LOGS, next_version, run_folder
from lightning_sft.checkpoints.slurm import requeue, slurm_job
from lightning_sft.errors import UserError
from lightning_sft.files import remove_leftovers
from lightning_sft.places import CHECKPOINTS, LAST, near, run_of
from lightning_sft.training.signals import WATCH, Stopped, stop_requested


class LastCheckpoint(Checkpoint):
    """Keep ``last.ckpt`` up to date, and end the run with it when a signal asks for that.

    It is written every ``every_n_train_steps`` optimizer steps, after every validation, before a sweep, at the end of
    an epoch and at the last step, whether or not a metric improved, always between two optimizer steps. Each time it
    replaces the one before when it is whole on the disk. What the loggers hold is flushed first, so that the curves of
    a killed run reach to its checkpoint.

    Between these occasions, those of ``every_n_train_steps`` do not stop the run: a snapshot is taken in memory, and
    written while training goes on. Where the write before is not done yet, it is made up for at the first step at which
    it is. Should a write fail, the run ends at the next step and says why; the checkpoint before stays.

    SIGTERM and SIGINT (Ctrl-C): the optimizer step is finished, ``last.ckpt`` is written, and the process ends with
    status 143 or 130; a second signal ends it at once. Under SLURM the requeue signal does the same and asks SLURM to
    requeue the job.

    Args:
        every_n_train_steps: optimizer steps between two writes; None leaves the other occasions.
        dirpath: the folder of ``last.ckpt``; by default ``checkpoints`` in the run's folder, which a run without a
            logger gets at ``<default_root_dir>/lightning_logs/version_N``.
        background: whether writes every so many steps go on behind training, for the memory of one more copy of what a
            checkpoint holds. Strategies that shard wait for them in any case.

    Raises:
        UserError: a number of steps below 1.
    """

    def __init__(
        self, every_n_train_steps: int | None = None, dirpath: str | None = None, background: bool = True
    ) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise UserError(
                f"LastCheckpoint got every_n_train_steps={every_n_train_steps}. Allowed: 1 or more, or null."
            )
        self.every_n_train_steps = every_n_train_steps
        self.dirpath = dirpath
        self.background = background
        self._own_folder: str | None = None
        self._loggers: list[dict[str, str]] = []
        self._requeue: int | None = None
        self._owns_watch = False
        self._saved_at = -1
        self._in_window = self._waiting = self._late = False

    @property
    def path(self) -> Path:
        """Where ``last.ckpt`` is written; known from the setup of a fit on."""
        folder = self.dirpath or self._own_folder
        assert folder is not None
        return Path(folder) / LAST

    # ------------------------------------------------------------------ the run's folder, the order of callbacks

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        write_safely(trainer)
        leave_signals_alone(trainer)
        self._requeue = requeue_signal(trainer)
        self._owns_watch = WATCH.install(*([] if self._requeue is None else [self._requeue]))
        if stage != "fit":
            return
        for callback in callbacks_of(trainer):
            if isinstance(callback, WeightAveraging):
                watch_swaps(callback)
            elif isinstance(callback, ModelCheckpoint):
                save_when_validated(callback)
        # Last of all: what is stored must hold what the other callbacks, ModelCheckpoint among them, made of the step.
        # A new list, since hooks are being called along the old one.
        trainer.callbacks = [*(c for c in callbacks_of(trainer) if c is not self), self]  # type: ignore[attr-defined]
        self._own_folder = trainer.strategy.broadcast(str(self._folder(trainer)))
        self._loggers = [
            {"class": type(x).__name__, "save_dir": str(x.save_dir), "name": str(x.name), "version": str(x.version)}
            for x in trainer.loggers
        ]

    def _folder(self, trainer: Trainer) -> Path:
        folder = run_folder(trainer)
        if folder is not None:
            return folder / CHECKPOINTS
        root = Path(trainer.default_root_dir)
        run = root / LOGS / f"version_{next_version([root / LOGS])}"
        for callback in callbacks_of(trainer):  # a folder of their own, too, instead of that of the run before
            if isinstance(callback, ModelCheckpoint) and str(callback.dirpath) in ("None", str(root / CHECKPOINTS)):
                callback.dirpath = trainer.strategy.broadcast(str(run / CHECKPOINTS))
        return run / CHECKPOINTS

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if (behind := writes_behind(trainer)) is not None:
            behind.background.close()
        self._release()

    def _release(self) -> None:
        WATCH.deferring = False
        if self._owns_watch:
            self._owns_watch = False
            WATCH.restore()

    # ------------------------------------------------------------------ when to save

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at = trainer.global_step
        WATCH.deferring = True
        if trainer.is_global_zero:
            remove_leftovers(self.path.parent)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (behind := writes_behind(trainer)) is not None:
            behind.background.check()
        step, every = trainer.global_step, self.every_n_train_steps
        due = every is not None and step > 0 and step % every == 0
        stops = trainer.should_stop and step != self._saved_at  # a time limit, early stopping: perhaps within a step
        ends = trainer.is_last_batch or step == trainer.max_steps or stops
        sweeps = any(getattr(c, "at_step", 0) == step and not getattr(c, "done", True) for c in callbacks_of(trainer))
        mid = (batch_idx + 1) % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch
        self._in_window = mid and not stops
        signalled = not mid and stop_requested(trainer)
        # Here and not in on_train_epoch_end: a checkpoint from there, resumed, would train the epoch's end again.
        if ends or sweeps or self._waiting or signalled:
            self._save(trainer)
        elif due or self._late:
            self._save_behind(trainer)
        if signalled:
            self._stop(trainer)

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if WATCH.deferring and stop_requested(trainer):
            WATCH.stop("in a validation", speak=False)  # on_exception speaks

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._saved_at = -1  # again, if the step was saved before: now with what the validation has shown
            self._save(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        WATCH.deferring = False
        self._finish(trainer)
        if stop_requested(trainer):
            self._stop(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped) and trainer.validating and WATCH.deferring:
            swap_back(trainer, pl_module)
            validate_again(trainer)
            self._saved_at = -1  # the step may be saved, but with a validation that is not to be repeated
            self._save(trainer)
            self._say_and_requeue(trainer)
        if (behind := writes_behind(trainer)) is not None:
            behind.background.settle()  # what ends the run is the exception at hand
        self._release()

    # ------------------------------------------------------------------ saving

    def _save_behind(self, trainer: Trainer) -> None:
        """Save without waiting for the disk; while it is still busy with the last one, do so at a later step."""
        behind = writes_behind(trainer) if self.background else None
        if behind is None or self._in_window or trainer.global_step == self._saved_at:
            self._save(trainer)
            return
        if trainer.strategy.broadcast(behind.background.busy):
            self._late = True
            return
        with behind.behind():
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step == self._saved_at or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # In the middle of an optimizer step the gradient gathered so far would be lost: wait for the step's end.
        self._waiting = self._in_window
        if self._in_window:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger | CSVLogger) and trainer.is_global_zero:
                logger.save()
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.flush()
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_at, self._late = trainer.global_step, False

    def _finish(self, trainer: Trainer) -> None:
        """Wait for what is written behind training.

        Raises:
            OSError: the disk is full, or the folder is gone.
        """
        if (behind := writes_behind(trainer)) is not None:
            behind.background.finish()

    def _stop(self, trainer: Trainer) -> None:
        self._finish(trainer)
        self._say_and_requeue(trainer)
        WATCH.stop("", speak=False)

    def _say_and_requeue(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        signum = WATCH.requested or signal.SIGTERM
        line = f"Stopped by {signal.Signals(signum).name} after step {trainer.global_step}; {self.path} is written"
        then = requeue() if self._is_requeue() else f"go on with {self.goes_on_with()}"
        if WATCH.speaks:
            print(f"{line}; {then}.", file=sys.stderr, flush=True)

    def goes_on_with(self) -> str:
        """Return the command that goes on from the checkpoint, or the option alone; empty before there is one."""
        if not self.path.exists():
            return ""
        run = run_of(self.path)
        if run is not None:
            return shlex.join(["lightning", "fit", str(near(run))])
        option = f"--ckpt_path {shlex.quote(str(near(self.path)))}"
        return f"{WATCH.again} {option}" if WATCH.again else option

    def _is_requeue(self) -> bool:
        return self._requeue is not None and WATCH.requested == self._requeue

    # ------------------------------------------------------------------ state

    @override
    def state_dict(self) -> dict[str, Any]:
        job = slurm_job()
        return {"loggers": self._loggers, "slurm": job and {**job, "requeued": self._is_requeue()}}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing over: the state is for the command line, which reads it before there is a trainer."""

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":
            keep_best(checkpoint, [c for c in callbacks_of(trainer) if isinstance(c, ModelCheckpoint)])
