"""LearningRateSweep: a learning-rate range test that leaves the run unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_sft.callbacks.sweeping import SweepCallback
from lightning_sft.errors import UserError
from lightning_sft.sweep.range_test import Choice, Reads, check_range, range_test
from lightning_sft.sweep.results import SweepResult


class LearningRateSweep(SweepCallback):
    """Run a range test: raise the learning rate step by step in a trial and suggest rates from the loss curve.

    Suggestions: ``steepest`` (where the loss falls most), ``minimum_tenth`` (a tenth of the rate at the minimum),
    ``valley`` (two thirds into the longest fall), ``edge`` (where the loss begins to rise for good). Afterwards the
    run continues as if nothing had happened, bit by bit. Keys: ``sweep/<name>/steepest``, ``.../minimum_tenth``,
    ``.../valley``, ``.../edge``, ``.../chosen``; a table ``.../report`` and a curve ``.../figure``.

    Args:
        low: first rate.
        high: last rate.
        steps: number of rates, one an optimizer step.
        reads: ``"train"``: the training loss, smoothed; ``"val"``: the validation NLL after every step.
        val_batches: the most validation batches of a rank for a reading; None is all.
        smoothing: of the training loss, 0 (none) to 1.
        choice: the suggestion to take: ``"valley"``, ``"steepest"``, ``"minimum_tenth"`` or ``"edge"``.
        edge_steps: 0, or the steps of further trials at constant rates that bisect ``edge`` to 2%: a rising rate may
            cross the edge unnoticed.
        apply: set the chosen rate and scale the schedule to it; otherwise only report.
        at_step: the optimizer step before which to sweep; 0 is the start of the run.
        name: part of the log keys, the files and the state in checkpoints.
        keep_callbacks: class names of the run's callbacks that take part in the trial.
        divergence: the trial ends once its loss is above this multiple of its first loss.

    Raises:
        UserError: settings that cannot work.
    """

    def __init__(
        self,
        low: float = 1e-7,
        high: float = 1.0,
        steps: int = 100,
        reads: Reads = "train",
        val_batches: int | None = 4,
        smoothing: float = 0.9,
        choice: Choice = "valley",
        edge_steps: int = 0,
        apply: bool = False,
        at_step: int = 0,
        name: str = "learning_rate",
        keep_callbacks: Sequence[str] = (),
        divergence: float = 4.0,
    ) -> None:
        super().__init__(name, at_step, apply, keep_callbacks, divergence)
        check_range(low, high, steps, reads, choice, smoothing)
        self.low = low
        self.high = high
        self.steps = steps
        self.reads: Reads = reads
        self.val_batches = val_batches
        self.smoothing = smoothing
        self.choice: Choice = choice
        if edge_steps < 0 or edge_steps == 1:
            raise UserError(f"edge_steps is {edge_steps}. Allowed: 0 (off), or 2 or more steps at a constant rate.")
        self.edge_steps = edge_steps

    @override
    def sweep(self, trainer: Trainer, module: LightningModule, folder: Path | None) -> SweepResult:
        facts = {"low": self.low, "high": self.high, "reads": self.reads, "val_batches": self.val_batches}
        return range_test(
            trainer,
            module,
            self.setting(trainer, self.steps, folder, **facts),
            low=self.low,
            high=self.high,
            reads=self.reads,
            val_batches=self.val_batches,
            smoothing=self.smoothing,
            choice=self.choice,
            edge_steps=self.edge_steps,
        )
