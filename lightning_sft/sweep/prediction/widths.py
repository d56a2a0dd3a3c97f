"""How wide the intervals of a prediction are, by what is trained how: calibrated by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch.optim import SGD, Adam, AdamW, Optimizer

Group = Literal["Adam", "SGD", "Adam, scheduled", "SGD, scheduled", "other"]


@dataclass(frozen=True)
class Width:
    """How wide an interval is: the half-width in log rate is the root of the sum of squares of these.

    Attributes:
        floor: in any case.
        of_change: times what the last run has changed.
        of_away: times the log distance of a probe's rate from that of the last run, beyond ``near``.
        of_surprise: times how far carried-on gradients were off.
        of_apart: times how far two rules for the error of a replay are apart.
        of_both: times how far carried-on gradients were off, times what half of the gradients change.
        near: log distance of a rate from that of the last run that adds nothing.
    """

    floor: float
    of_change: float
    of_away: float
    of_surprise: float = 0.0
    of_apart: float = 0.0
    of_both: float = 0.0
    near: float = 0.0

    def times(self, factor: float) -> Width:
        """Return what makes intervals so many times as wide."""
        return Width(
            floor=factor * self.floor,
            of_change=factor * self.of_change,
            of_away=factor * self.of_away,
            of_surprise=factor * self.of_surprise,
            of_apart=factor * self.of_apart,
            of_both=factor * self.of_both,
            near=self.near,
        )

    def half(self, surprise: float, change: float, away: float, halved: float, apart: float) -> float:
        """Return the half-width, in log rate.

        Args:
            surprise: the largest relative error of a carried-on gradient.
            change: what the last run has changed, in log rate.
            away: log distance of the rate from that of the last run.
            halved: what half of the gradients would change, in log rate.
            apart: how far two rules for the error of a replay are apart, in log rate.
        """
        beyond = max(abs(away) - self.near, 0.0)
        parts = (self.of_change * change, self.of_away * beyond, self.of_apart * apart)
        return math.hypot(self.floor, self.of_surprise * surprise, self.of_both * surprise * halved, *parts)


#: Before the factor of its group: the numbers under which errors of cells of tests/benchmarks/predict_grid.py are most
#: likely, if they are Laplace distributed. ``near`` is how close the last replay comes to its own crossing.
OF_REPLAY = Width(floor=1e-4, of_change=0.0, of_away=0.1, of_surprise=0.1, of_apart=4.0, of_both=50.0, near=0.005)
OF_TRIAL = Width(floor=0.02, of_change=0.1, of_away=0.3)
#: How many times as wide intervals of replays are, so that 80% hold: a quantile of |error| / half-width over cells of
#: the grid, where each unit weighs the same. Units are architectures, schedules and optimizer classes, since what comes
#: next is another one of these. docs/critical_learning_rate.md has the cells, and what left-out units gave.
FACTORS: dict[Group, float] = {
    "Adam": 0.23,
    "SGD": 0.30,
    "Adam, scheduled": 0.26,
    "SGD, scheduled": 0.36,
    "other": 0.39,
}
#: Where half of the gradients would change more than this, in log rate, replays settle nothing.
MOST_HALVED = 0.05
#: nor where a carried-on gradient is off by more than this share of the true one
MOST_SURPRISE = 0.5
#: the largest epsilon of Adam that cells of its groups had
_MOST_EPS = 1e-8


def group_of(optimizer: Optimizer, shares: Sequence[float]) -> Group:
    """Return the group of a run, by what it was calibrated as.

    Args:
        optimizer: of the run.
        shares: each step's rate as a share of the peak rate.

    Returns:
        ``Adam``: torch's Adam or AdamW, without AMSGrad or an epsilon above torch's, under a constant rate; ``SGD``:
        torch's SGD, without Nesterov's momentum or dampening; each ``, scheduled`` where the rate changes; ``other``:
        any other class or setting.
    """
    unusual = any(
        group.get("nesterov") or group.get("amsgrad") or group.get("dampening") or group.get("eps", 0.0) > _MOST_EPS
        for group in optimizer.param_groups
    )
    if unusual or type(optimizer) not in (SGD, Adam, AdamW):
        return "other"
    if max(shares) <= min(shares):
        return "SGD" if type(optimizer) is SGD else "Adam"
    return "SGD, scheduled" if type(optimizer) is SGD else "Adam, scheduled"


def replay_width(optimizer: Optimizer, shares: Sequence[float]) -> Width:
    """Return how wide intervals of replays are for a run; arguments are those of `group_of`."""
    return OF_REPLAY.times(FACTORS[group_of(optimizer, shares)])
