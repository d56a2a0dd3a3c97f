"""Whether a run was long enough to speak of failure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_sft.units import plural

#: a loss still falls steeply if its rate over the last quarter is above this share of its rate over the whole run
STEEP = 0.5
#: passes over the training rows that are enough by themselves; ours, and what most recipes take
PASSES = 3


def steepness(times: Sequence[float], losses: Sequence[float]) -> float:
    """Return the loss's rate of fall over the last quarter as a share of that over the whole; 0 if it did not fall.

    Args:
        times: of the readings, ascending, such as optimizer steps; at least one.
        losses: read then, nats.
    """
    first, last = times[0], times[-1]
    if last == first:
        return 0.0
    cut = last - (last - first) / 4
    i = max(i for i, time in enumerate(times) if time <= cut)
    late = (losses[i] - losses[-1]) / (last - times[i])
    mean = (losses[0] - losses[-1]) / (last - first)
    return late / mean if mean > 0 else 0.0


@dataclass(frozen=True)
class RunLength:
    """How far a run has come.

    Attributes:
        steps: optimizer steps.
        epochs: passes over the training rows; nan where their number is not known.
        spent: learning rates of all steps before each reading, summed up. A schedule that ends near 0 makes every loss
            settle; by this measure only one that has learned what it can does.
        losses: mean NLL at each reading, nats, of the trained tokens that were outranked at the start.
    """

    steps: int
    epochs: float = math.nan
    spent: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()

    def __str__(self) -> str:
        """Return the steps and epochs in words."""
        steps = f"{plural(self.steps, 'step')}"
        if math.isnan(self.epochs):
            return steps
        epochs = f"{self.epochs:.2g}"
        return f"{steps} ({epochs} epoch{'s' * (epochs != '1')})"

    def too_short(self, overtook: float, enough: float) -> str:
        """Return why it is too early to say that right tokens stay behind; empty where it can be said.

        It can be said once every training row has been shown three times; or once, if other tokens of the run have
        overtaken their competitors, so that there was time for it, or the loss has settled.

        Args:
            overtook: of the tokens outranked at the start, the share that is the first choice now.
            enough: above this share there was time for it.
        """
        if self.epochs < 1:
            return "not every training row has been shown yet"
        if self.epochs >= PASSES or overtook > enough or not self.losses:
            return ""
        still = steepness(self.spent, self.losses)
        if still <= STEEP:
            return ""
        few = f"no more than {enough:.0%} of such tokens have overtaken their competitor"
        return f"{few}, and their loss, for the learning rate spent, still falls at {still:.0%} of its mean rate"
