"""A second estimate, by the whole run at the rate that the first one gives; and its interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lightning_sft.sweep.prediction.curve import crossing_between
from lightning_sft.sweep.prediction.estimate import Estimate, ShortRun, Target
from lightning_sft.sweep.prediction.replay import Field, Replay, Steerable, replay, spread_nodes
from lightning_sft.sweep.prediction.widths import MOST_HALVED, MOST_SURPRISE, Width

#: pieces of the way, at whose ends gradients are computed
PIECES = 4
#: A run whose crossing is within this share of its end is the last one; and the most runs: those that look for a
#: crossing where short runs saw none, and those that close in on it.
REPLAYS = (0.005, 12)
#: the same where every step is trained, on rows of its own
TRIALS = (0.1, 5)
#: differences of shares of a way that are none
_SAME = 1e-9


class Replayable(Steerable, Protocol):
    """Protocol: a model that keeps the gradients of its last short run, and counts those that it has computed."""

    field: Field
    steps: int


#: makes the whole run at a peak rate, given its way at an earlier one
WholeRun = Callable[[float, Sequence[float]], Replay]


class Replays:
    """Whole runs, replayed on a model that has taken short runs; a `WholeRun`.

    Args:
        model: what is replayed.
        target: the run that is asked about.
    """

    def __init__(self, model: Replayable, target: Target) -> None:
        self._model, self._target = model, target
        self._last: Replay | None = None

    def __call__(self, rate: float, way: Sequence[float]) -> Replay:
        """Replay the run at a peak rate."""
        self._last = None  # its gradients are not needed any more
        nodes = sorted(spread_nodes(way, PIECES))
        made = replay(self._model, rate, self._target, dict.fromkeys(nodes), self._model.field, keep=nodes[1::2])
        self._last = made
        return made

    def coarser(self) -> tuple[Replay, Replay]:
        """Return the last replay again: with every other of its gradients, and with none; this computes none."""
        made = self._last
        if made is None:
            raise RuntimeError("There is no replay to repeat with fewer gradients.")
        half, none = (
            replay(self._model, made.rate, self._target, given, self._model.field) for given in (made.kept, {})
        )
        return half, none


@dataclass(frozen=True)
class Refined:
    """What replays have found.

    Attributes:
        rate: the critical rate.
        change: log ratio of it to what was thought before the last replay.
        last: the last replay.
        settled: whether the last run crosses near its end; otherwise no run did.
        coarser: the same with half of its gradients, and with none; None where every step was trained.
    """

    rate: float
    change: float
    last: Replay
    settled: bool = True
    coarser: tuple[Replay, Replay] | None = None


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
        way, at = seen.way, crossing_between(seen.progress, values)
        if math.isinf(at):
            # it moves the right way at first and has turned back: too far
            if values[-1] <= values[0] and first.slope is not None and first.slope > 0:
                above, rate = rate, math.sqrt(below * rate) if below else rate / 4
            else:
                below = max(below, rate)
                rate = min(4 * rate, math.sqrt(below * above))
            continue
        found = rate * at / seen.progress[-1]
        settled = abs(math.log(found / rate)) < close
        if settled or count == most:
            return Refined(found, math.log(found / (first.lr or rate)), seen, settled)
        rate = found
    return None


def refined(said: Estimate, found: Refined, gap: Callable[[Sequence[float]], float], width: Width) -> Estimate | None:
    """Return an estimate with the rate that whole runs have found, and its interval.

    Where the last replay was repeated with fewer gradients, what that changes tells the error of the replay itself, and
    it is taken off; see `left_errors`.

    Args:
        said: by the short runs.
        found: what the whole runs have found.
        gap: reduces the gaps of all probes to one number: those that the runs were aimed at, or others.
        width: of the interval.

    Returns:
        None if this gap does not come near zero in the last run; ``unsettled`` without a rate if replays disagree.
    """
    rate, halved, apart, surprise = _rate_in(found.last, gap), 0.0, 0.0, found.last.surprise
    if rate is None:
        return None
    away = math.log(rate / found.last.rate)
    if found.coarser is not None:
        half, none = (_rate_in(made, gap) for made in found.coarser)
        halved = math.inf if half is None or none is None else math.log(half / rate)
        if not found.settled or none is None or abs(halved) > MOST_HALVED or surprise > MOST_SURPRISE:
            return unsettled(said)
        behind = tuple(made.behind for made in (found.last, *found.coarser))
        proportional, curved = left_errors(halved, math.log(none / rate), behind)
        rate *= math.exp(-curved)
        apart = curved - proportional
    change = math.log(rate / said.lr) if said.lr else found.change
    wide = width.half(surprise=surprise, change=change, away=away, halved=halved, apart=apart)
    return replace(said, status="predicted", lr=rate, low=rate * math.exp(-wide), high=rate * math.exp(wide))


def unsettled(said: Estimate) -> Estimate:
    """Return an estimate without a rate, where replays settled on none."""
    return replace(said, status="unsettled", lr=None, low=None, high=None)


def left_errors(halved: float, none: float, behind: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the error of a replay by two rules, from what fewer gradients change (Richardson's extrapolation).

    A step whose gradient was computed some way back is off by a multiple of that way, and more exactly by a multiple of
    its square, too. Summed over all steps that is what `Replay.behind` tells, of each replay.

    Args:
        halved: change of the log rate with every other gradient left out.
        none: the same with all of them left out.
        behind: of the replay, of that with half of its gradients, and of that with none.

    Returns:
        The error of the log rate: if errors are proportional to the way, judged by ``halved`` (by ``none`` where no
        gradient could be left out), and with the square, judged by both.
    """
    (full, full2), (half, half2), (bare, bare2) = behind
    a, b, c, d = half - full, half2 - full2, bare - full, bare2 - full2
    proportional = halved * full / a if a > _SAME else none * full / c if c > _SAME else 0.0
    determinant = a * d - b * c
    if abs(determinant) < _SAME:  # two of the three are the same, in runs of a few steps
        return proportional, proportional
    first, second = (halved * d - b * none) / determinant, (a * none - c * halved) / determinant
    return proportional, first * full + second * full2


def _rate_in(made: Replay, gap: Callable[[Sequence[float]], float]) -> float | None:
    """Return the critical rate of a gap by one replay; None if it does not come near zero."""
    at = crossing_between(made.progress, [gap(row) for row in made.gaps])
    return None if math.isinf(at) else made.rate * at / made.progress[-1]
