"""Private attributes of Lightning around signals, launched ranks and the moments of validations."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep a trainer from catching signals: its handler runs collectives and saves in the middle of a step."""
    untyped: Any = trainer
    untyped._signal_connector.register_signal_handlers = lambda: None


def validate_again(trainer: Trainer) -> None:
    """Let a checkpoint of a fit that is in a validation say that its first batch is under way: a resume starts there.

    As Lightning counts, a resume would leave out the batches that were done and lack their values.
    """
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.is_last_batch = False
    for counts in (progress.current, progress.total):
        counts.ready = counts.started = 1
        counts.processed = counts.completed = 0


def requeue_signal(trainer: Trainer) -> int | None:
    """Return the signal by which SLURM announces that the job is to be requeued; None where none is to be caught."""
    untyped: Any = trainer
    environment = untyped._accelerator_connector.cluster_environment
    if not SLURMEnvironment.detect():
        return None
    if isinstance(environment, SLURMEnvironment):
        return int(environment.requeue_signal or signal.SIGUSR1) if environment.auto_requeue else None
    return int(signal.SIGUSR1)


def launched_ranks(trainer: Trainer) -> tuple[Callable[[], list[int]], bool]:
    """Return what gives the ids of rank processes that this one started, and whether it only waits for them."""
    launcher: Any = trainer.strategy.launcher

    def alive() -> list[int]:
        processes = getattr(launcher, "procs", [])
        return [p.pid for p in processes if (p.is_alive() if hasattr(p, "is_alive") else p.poll() is None)]

    return alive, isinstance(launcher, _MultiProcessingLauncher)


def validate_also(trainer: Trainer, due: Callable[[bool], bool]) -> None:
    """Run a validation in a fit where ``due`` says so, too, and not only where Lightning's own settings do.

    Args:
        trainer: at the start of training.
        due: asked after each batch where no validation is due otherwise; gets whether the loop has just been resumed,
            and is then to say whether the checkpoint is of after such a validation, which Lightning skips and counts.
    """
    loop: Any = trainer.fit_loop.epoch_loop

    def should_check_val(data_fetcher: Any) -> bool:
        return bool(type(loop)._should_check_val_fx(loop, data_fetcher)) or (
            trainer.enable_validation and due(loop.restarting)
        )

    loop._should_check_val_fx = should_check_val
