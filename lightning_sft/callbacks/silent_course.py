"""How far a run that is watched for silent failure has come, by its steps, epochs and learning rates."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from lightning_sft.callbacks.run_clock import epochs_done
from lightning_sft.metrics.run_length import RunLength
from lightning_sft.probes.watched_set import WatchedSet

#: share of a run's steps after which training rows are read once more, so that it can be told whether their loss has
#: settled: under any usual schedule less than three quarters of the learning rates are spent then
MIDDLE = 0.4


class RunCourse:
    """Sums up the learning rates of a run's steps, and knows when its middle is.

    Attributes:
        spent: learning rates of all steps so far, summed up.
    """

    def __init__(self) -> None:
        self.spent = 0.0
        self._middle = -1

    def begin(self, trainer: Trainer, spent: float) -> None:
        """Begin, or go on with what a checkpoint says was spent."""
        self.spent = spent
        total = trainer.estimated_stepping_batches
        self._middle = math.ceil(MIDDLE * total) if math.isfinite(total) else -1

    def step(self, optimizer: Optimizer) -> None:
        """Add the rate of a step that is about to be taken."""
        self.spent += float(optimizer.param_groups[0]["lr"])

    def reaches_middle(self, trainer: Trainer) -> bool:
        """Return once, after the step in the middle of the run, that it was taken."""
        reached = trainer.global_step == self._middle
        self._middle = -1 if reached else self._middle
        return reached

    def length(self, trainer: Trainer, watched: WatchedSet) -> RunLength:
        """Return how far the run has come, by what was read of a set."""
        spent, losses = tuple(zip(*watched.course, strict=True)) if watched.course else ((), ())
        return RunLength(trainer.global_step, epochs_done(trainer), spent, losses)
