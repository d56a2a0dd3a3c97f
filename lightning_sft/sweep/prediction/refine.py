"""A second estimate, by the whole run at the rate that the first one gives; and its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lightning_sft.sweep.prediction.curve import crossing_between
from lightning_sft.sweep.prediction.estimate import Estimate, ShortRun, Target
from lightning_sft.sweep.prediction.gains import Habits
from lightning_sft.sweep.prediction.replay import Field, Replay, Steerable, replay, spread_nodes

#: pieces of the way, at whose ends gradients are computed
PIECES = 4
#: A run whose crossing is within this share of its end is the last one; and the most runs: those that look for a
#: crossing where short runs saw none, and those that close in on it.
REPLAYS = (0.005, 12)
#: the same where every step is trained, on rows of its own
TRIALS = (0.1, 5)


@dataclass(frozen=True)
class Width:
    """How wide an interval is: the half-width in log rate is the root of the sum of squares of these.

    Attributes:
        floor: in any case.
        of_surprise: times how far carried-on gradients were off, where that was looked at.
        of_change: times what the last run has changed.
        of_away: times the log distance of a probe's rate from that of the last run, beyond ``near``.
        near: distance at which the last run is made as much for the probe as a run can be.
    """

    floor: float
    of_surprise: float
    of_change: float
    of_away: float
    near: float = 0.0


#: what fp32 leaves open in any case, in log rate
_FLOOR = 2e-5
#: by what the optimizer does: of SGD, of momentum, of RMSprop, of Adam and their like. Each share is the one that holds
#: 80% of the cells of tests/benchmarks/predict_grid.py but the fresh ones (`--widths`; split conformal).
OF_REPLAY = {
    Habits(grows=True, goes_on=False): Width(_FLOOR, 0.376, 0.0, 0.1, REPLAYS[0]),
    Habits(grows=True, goes_on=True): Width(_FLOOR, 0.230, 0.0, 0.1, REPLAYS[0]),
    Habits(grows=False, goes_on=False): Width(_FLOOR, 0.087, 0.0, 0.1, REPLAYS[0]),
    Habits(grows=False, goes_on=True): Width(_FLOOR, 0.065, 0.0, 0.1, REPLAYS[0]),
}
OF_TRIAL = Width(0.02, 0.0, 0.1, 0.3)


class Replayable(Steerable, Protocol):
    """Protocol: a model that keeps the gradients of its last short run, and counts those that it has computed."""

    field: Field
    steps: int


#: makes the whole run at a peak rate, given its way at an earlier one
WholeRun = Callable[[float, Sequence[float]], Replay]


def by_replays(model: Replayable, target: Target) -> WholeRun:
    """Return how the whole run is replayed on a model that has taken short runs."""

    def run(rate: float, way: Sequence[float]) -> Replay:
        return replay(model, rate, target.shares, spread_nodes(way, PIECES), model.field)

    return run


@dataclass(frozen=True)
class Refined:
    """What replays have found.

    Attributes:
        rate: the critical rate.
        change: log ratio of it to what was thought before the last replay.
        last: the last replay.
    """

    rate: float
    change: float
    last: Replay


def refine(
    whole: WholeRun,
    gap: Callable[[Sequence[float]], float],
    target: Target,
    runs: Sequence[ShortRun],
    first: Estimate,
    close: float,
    most: int,
) -> Refined | None:
    """Return the rate at which the whole run crosses zero, None if none is in sight.

    The first one is made at the rate that the short runs point to. Where they point nowhere, it begins at that of the
    longest, and goes on at higher rates, or at lower ones where the gap has turned back.

    Args:
        whole: makes the whole run.
        gap: reduces the gaps of all probes to one number.
        target: the run that is asked about.
        runs: the short runs.
        first: what they said.
        close: a run whose crossing is within this share of its end is the last one.
        most: runs.
    """
    finite = [run for run in runs if run.steps and all(math.isfinite(gap(row)) for row in run.gaps)]
    if not finite:
        return None
    longest = max(finite, key=lambda run: run.total)
    rate = first.lr or longest.total / target.multiplier
    way, below, above = target.way, 0.0, math.inf
    for count in range(1, most + 1):
        seen = whole(rate, way)
        values = [gap(row) for row in seen.gaps]
        if not all(map(math.isfinite, [*values, *seen.way])):
            above, rate = rate, math.sqrt(below * rate) if below else rate / 2
            continue
        way, at = seen.way, crossing_between(seen.distances, values)
        if math.isinf(at):
            # it moves the right way at first and has turned back: too far
            if values[-1] <= values[0] and first.slope is not None and first.slope > 0:
                above, rate = rate, math.sqrt(below * rate) if below else rate / 4
            else:
                below = max(below, rate)
                rate = min(4 * rate, math.sqrt(below * above))
            continue
        found = rate * at / seen.way[-1]
        if abs(math.log(found / rate)) < close or count == most:
            return Refined(found, math.log(found / (first.lr or rate)), seen)
        rate = found
    return None


def refined(said: Estimate, found: Refined, rate: float, width: Width) -> Estimate:
    """Return an estimate with the rate that whole runs have found, and its interval.

    Args:
        said: by the short runs.
        found: what the whole runs have found, for the gap that they were aimed at.
        rate: the critical rate of this gap.
        width: of the interval.
    """
    away = max(abs(math.log(rate / found.last.rate)) - width.near, 0.0)
    change = math.log(rate / said.lr) if said.lr else found.change
    parts = (width.of_surprise * found.last.surprise, width.of_change * change, width.of_away * away)
    half = math.hypot(width.floor, *parts)
    return replace(said, status="predicted", lr=rate, low=rate * math.exp(-half), high=rate * math.exp(half))


def rate_of(found: Refined, gaps: Sequence[float]) -> float | None:
    """Return the critical rate of another gap that the last replay has read; None if it does not come near zero."""
    at = crossing_between(found.last.distances, gaps)
    return None if math.isinf(at) else found.last.rate * at / found.last.way[-1]
