"""ObjectiveSweep: compares objectives from one snapshot, each at its own best learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_sft.callbacks.sweeping import SweepCallback
from lightning_sft.objectives import Objective
from lightning_sft.sweep.compare import Select, check_comparison, compare_objectives
from lightning_sft.sweep.results import SweepResult
from lightning_sft.sweep.search import geometric_grid


class ObjectiveSweep(SweepCallback):
    """Compare objectives under a small budget of steps; the run then continues under its own objective.

    Every objective starts from the same weights, sees the same rows, and has as many trials to find its own learning
    rate: their gradients differ in scale, so that one rate for all would compare rates. The best rate is trained with
    further seeds (other orders of rows, other dropout); the table shows held-out NLL, mean p and token accuracy with
    95% t-intervals over them. Needs validation data and a module that can change its objective, such as SFTModule.
    Key: ``sweep/<name>/objectives``; a table ``.../report`` and a figure ``.../figure``.

    Args:
        objectives: what to compare, such as NLL and PowerFamily(alpha=1) (the loss -p).
        steps: the budget: optimizer steps of a trial.
        low: lowest learning rate of the search.
        high: highest.
        points: rates of the search's grid.
        refine: rounds of two further rates around the best one.
        seeds: trainings at the best rate.
        select: what chooses a rate: ``"val_nll"``, ``"val_mean_p"`` or ``"val_accuracy"``.
        val_batches: the most validation batches of a rank; None is all.
        at_step: the optimizer step before which to sweep; 0 is the start of the run.
        name: part of the log keys, the files and the state in checkpoints.
        keep_callbacks: class names of the run's callbacks that take part in trials.
        divergence: a trial ends once its NLL is above this multiple of its first NLL.

    Raises:
        UserError: settings that cannot work.
    """

    def __init__(
        self,
        objectives: list[Objective],
        steps: int = 20,
        low: float = 1e-6,
        high: float = 1e-2,
        points: int = 5,
        refine: int = 1,
        seeds: int = 3,
        select: Select = "val_nll",
        val_batches: int | None = None,
        at_step: int = 0,
        name: str = "objectives",
        keep_callbacks: Sequence[str] = (),
        divergence: float = 4.0,
    ) -> None:
        super().__init__(name, at_step, False, keep_callbacks, divergence)
        check_comparison(objectives, points, refine, seeds, select)
        geometric_grid(low, high, points)
        self.objectives = list(objectives)
        self.steps = steps
        self.low = low
        self.high = high
        self.points = points
        self.refine = refine
        self.seeds = seeds
        self.select: Select = select
        self.val_batches = val_batches

    @override
    def sweep(self, trainer: Trainer, module: LightningModule, folder: Path | None) -> SweepResult:
        return compare_objectives(
            trainer,
            module,
            self.setting(trainer, self.steps, folder, val_batches=self.val_batches),
            self.objectives,
            low=self.low,
            high=self.high,
            points=self.points,
            refine=self.refine,
            seeds=self.seeds,
            select=self.select,
            val_batches=self.val_batches,
        )
