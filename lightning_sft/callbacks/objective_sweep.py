"""ObjectiveSweep: compares objectives from one snapshot, each at its own best learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_sft.callbacks.sweeping import SweepCallback
from lightning_sft.compare.rates import RateSearch
from lightning_sft.objectives import Objective
from lightning_sft.sweep.compare import check_comparison, compare_objectives
from lightning_sft.sweep.results import SweepResult


class ObjectiveSweep(SweepCallback):
    """Compare objectives under a small budget of steps; the run then continues under its own objective.

    Every objective starts from the same weights, sees the same rows, and has as many trials to find its own learning
    rate: their gradients differ in scale, so that one rate for all would compare rates. The best rate is trained with
    further seeds: other orders of rows, other dropout. The held-out rows are dealt out: one part selects the rates, and
    every seed is judged by a part of its own. The table shows exact match, NLL, mean p and token accuracy, and the
    paired difference from the first objective with its 95% t-interval over seeds; a trial that diverges counts as the
    worst. `lightning compare` does the same for arms that differ in anything, with rows drawn afresh. Needs validation
    data and a module that can change its objective, such as SFTModule.
    Key: ``sweep/<name>/objectives``; a table ``.../report`` and a figure ``.../figure``.

    Args:
        objectives: what to compare, such as NLL and PowerFamily(alpha=1) (the loss -p); the first is what the others
            are compared with.
        steps: the budget: optimizer steps of a trial.
        low: lowest learning rate of the search.
        high: highest.
        points: rates of the search's grid.
        refine: rounds of two further rates around the best one.
        grow: the most rates that are added at either end of the grid while any objective's best is there.
        seeds: trainings at the best rate.
        select: the log key that chooses a rate: ``"val/exact_match"``, ``"val/nll"``, ``"val/mean_p"`` or
            ``"val/token_accuracy"``; ``"auto"``: exact match where answers are short and any is right, else the NLL
            with a warning, since that favours NLL. ``"val_nll"`` and the like, of earlier versions, are read.
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
        select: str = "auto",
        val_batches: int | None = None,
        at_step: int = 0,
        name: str = "objectives",
        keep_callbacks: Sequence[str] = (),
        divergence: float = 4.0,
        grow: int = 3,
    ) -> None:
        super().__init__(name, at_step, False, keep_callbacks, divergence)
        self.rates = RateSearch(low, high, points, refine, grow)
        check_comparison(objectives, self.rates, seeds, select)
        self.objectives = list(objectives)
        self.steps = steps
        self.seeds = seeds
        self.select = select
        self.val_batches = val_batches

    @override
    def sweep(self, trainer: Trainer, module: LightningModule, folder: Path | None) -> SweepResult:
        return compare_objectives(
            trainer,
            module,
            self.setting(trainer, self.steps, folder, val_batches=self.val_batches),
            self.objectives,
            self.rates,
            seeds=self.seeds,
            select=self.select,
            val_batches=self.val_batches,
        )
