"""SweepCallback, the base of the sweep callbacks: when to sweep, once a run, and where the result goes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_sft._lightning import callbacks_of, state_key_of
from lightning_sft.callbacks.run_progress import RunProgress
from lightning_sft.callbacks.training_metrics import TrainingMetrics
from lightning_sft.errors import UserError
from lightning_sft.figures.loggers import log_figure, log_text
from lightning_sft.figures.probes import can_show
from lightning_sft.figures.sweeps import sweep_figure
from lightning_sft.places import near
from lightning_sft.report.plain_text import shown
from lightning_sft.sweep.prediction.record import predicted_rate
from lightning_sft.sweep.rates import peak_rate, set_peak_rate
from lightning_sft.sweep.results import SweepResult
from lightning_sft.sweep.search import check_divergence
from lightning_sft.sweep.session import SweepSettings
from lightning_sft.sweep.store import FOLDER as SWEEPS


def check_name(name: str) -> None:
    """Raise if a sweep cannot have this name."""
    if not name or "/" in name:
        raise UserError(f"name is {name!r}. Allowed: a word; it becomes part of log keys and file names.")


class SweepEnded(Exception):
    """The sweep is done, and the run was only started for it."""


class SweepCallback(Callback):
    """Sweeps once in a run, between two optimizer steps, and leaves no trace of its trials.

    The result goes into the log, into ``<run folder>/sweep/<name>.json`` and ``.csv``, and to the loggers as scalars,
    a text and a figure under ``sweep/<name>/``. A run that is resumed does not sweep again.

    Args:
        name: distinguishes the sweeps of a run: part of their log keys, their files and their state in checkpoints.
        at_step: the optimizer step before which to sweep; 0 is the start of the run.
        apply: set the learning rate that was found, and scale the schedule to it.
        keep_callbacks: class names of the run's callbacks that take part in trials, such as those that change
            gradients; all others neither see nor log a trial.
        divergence: a trial ends once its loss is above this multiple of its first loss.

    Attributes:
        only: the run ends with the sweep, by `SweepEnded`.
    """

    only = False

    def __init__(
        self, name: str, at_step: int, apply: bool, keep_callbacks: Sequence[str] = (), divergence: float = 4.0
    ) -> None:
        if at_step < 0:
            raise UserError(f"at_step is {at_step}. Allowed: 0 (before the first step) or more.")
        check_name(name)
        check_divergence(divergence)
        self.name = name
        self.at_step = at_step
        self.apply = apply
        self.keep_callbacks = tuple(keep_callbacks)
        self.divergence = divergence
        self.result: SweepResult | None = None
        self.done = False

    @property
    @override
    def state_key(self) -> str:
        return state_key_of(self, name=self.name)

    @abstractmethod
    def sweep(self, trainer: Trainer, module: LightningModule, folder: Path | None) -> SweepResult:
        """Run the sweep and return its result; the model is restored.

        Args:
            trainer: between two optimizer steps.
            module: its module.
            folder: the run's folder; None where nothing is to be written.
        """

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        due = trainer.global_step >= self.at_step and batch_idx % trainer.accumulate_grad_batches == 0
        if self.done or not due or trainer.barebones or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        log_dir = trainer.log_dir  # a collective: every rank asks
        folder = None if log_dir is None else Path(log_dir)
        self.result = self.sweep(trainer, pl_module, folder)
        self.done = True
        for callback in callbacks_of(trainer):
            if isinstance(callback, TrainingMetrics | RunProgress):
                callback.restart_clock()
        self._report(trainer, self.result, folder)
        if self.only:
            raise SweepEnded
        if self.apply:
            self._apply(trainer, self.result)
        elif self.result.chosen() is not None:
            own = peak_rate(trainer)
            rank_zero_info(f"The run keeps its own learning rate, {own:.4g}: the sweep's apply is false.\n")

    def setting(self, trainer: Trainer, steps: int, folder: Path | None, **facts: Any) -> SweepSettings:
        """Return the settings of a sweep.

        Raises:
            UserError: ``keep_callbacks`` names a callback that the run does not have.
        """
        own = {type(c).__name__: c for c in callbacks_of(trainer) if c is not self}
        unknown = [name for name in self.keep_callbacks if name not in own]
        if unknown:
            raise UserError(f"keep_callbacks names {unknown}, which this run does not have. It has: {sorted(own)}.")
        kept = tuple(own[name] for name in self.keep_callbacks)
        return SweepSettings(self.name, steps, folder, kept, self.divergence, {"sweep": type(self).__name__, **facts})

    def _report(self, trainer: Trainer, result: SweepResult, folder: Path | None) -> None:
        written = "" if folder is None else f"Written to {near(folder / SWEEPS / f'{self.name}.json')}\n"
        rank_zero_info(f"\nSweep {self.name} at step {result.step}:\n{shown(result.text())}\n{written}")
        if folder is not None and trainer.is_global_zero:
            result.save(folder / SWEEPS)
        prefix = f"sweep/{self.name}"
        for logger in trainer.loggers:
            logger.log_metrics({f"{prefix}/{k}": v for k, v in result.scalars().items()}, step=trainer.global_step)
        log_text(trainer, f"{prefix}/report", result.text(), trainer.global_step)
        if can_show(trainer):
            figure = sweep_figure(result, predicted=predicted_rate(folder, self.name))
            log_figure(trainer, f"{prefix}/figure", figure, trainer.global_step)

    def _apply(self, trainer: Trainer, result: SweepResult) -> None:
        rate = trainer.strategy.broadcast(result.chosen())
        if rate is None:
            rank_zero_warn(f"Sweep {self.name} found no rate to apply, so the run keeps its own.")
            return
        set_peak_rate(trainer, rate)
        rank_zero_info(f"Sweep {self.name}: the learning rate is now {rate:.6g}; the schedule is scaled to it.")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = bool(state_dict["done"])
