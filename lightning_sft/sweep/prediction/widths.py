"""How wide the intervals of a prediction are, by what is trained how: calibrated by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch.optim import SGD, Adam, AdamW, Optimizer

Group = Literal["plain", "scheduled", "other"]


@dataclass(frozen=True)
class Width:
    """How wide an interval is: the half-width in log rate is the root of the sum of squares of these.

    Attributes:
        floor: in any case.
        of_change: times what the last run has changed.
        of_away: times the log distance of a probe's rate from that of the last run.
        of_halved: times what half of the gradients would have changed, where that was looked at.
        of_surprise: times how far carried-on gradients were off.
    """

    floor: float
    of_change: float
    of_away: float
    of_halved: float = 0.0
    of_surprise: float = 0.0

    def times(self, factor: float) -> Width:
        """Return what makes intervals so many times as wide."""
        parts = (self.floor, self.of_change, self.of_away, self.of_halved, self.of_surprise)
        return Width(*(factor * part for part in parts))


#: before the factor of its group: chosen for the interval score on cells of tests/benchmarks/predict_grid.py
OF_REPLAY = Width(floor=5e-5, of_change=0.0, of_away=0.1, of_halved=0.15, of_surprise=0.04)
OF_TRIAL = Width(floor=0.02, of_change=0.1, of_away=0.3)
#: How many times as wide intervals of replays are, so that 80% hold: the quantile of |error| / half-width over cells of
#: the grid, where each unit weighs the same. Units are architectures, schedules and optimizer classes, since what comes
#: next is another one of these. docs/critical_learning_rate.md has the cells, and what left-out units gave.
FACTORS: dict[Group, float] = {"plain": 0.82, "scheduled": 1.08, "other": 2.94}
#: Where half of the gradients would change more than this, in log rate, replays settle nothing.
MOST_HALVED = 0.05
#: the largest epsilon of Adam that cells of the first two groups had
_MOST_EPS = 1e-8


def group_of(optimizer: Optimizer, shares: Sequence[float]) -> Group:
    """Return the group of a run, by what it was calibrated as.

    Args:
        optimizer: of the run.
        shares: each step's rate as a share of the peak rate.

    Returns:
        ``plain``: torch's SGD, Adam or AdamW, without Nesterov's momentum, AMSGrad or an epsilon above torch's, under a
        constant rate; ``scheduled``: the same where the rate changes; ``other``: any other class or setting.
    """
    known = type(optimizer) in (SGD, Adam, AdamW) and not any(
        group.get("nesterov") or group.get("amsgrad") or group.get("dampening") or group.get("eps", 0.0) > _MOST_EPS
        for group in optimizer.param_groups
    )
    if not known:
        return "other"
    return "plain" if max(shares) <= min(shares) else "scheduled"


def replay_width(optimizer: Optimizer, shares: Sequence[float]) -> Width:
    """Return how wide intervals of replays are for a run; arguments are those of `group_of`."""
    return OF_REPLAY.times(FACTORS[group_of(optimizer, shares)])
