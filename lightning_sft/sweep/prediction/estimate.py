"""Estimate a critical learning rate from a few short runs: plan the runs, then combine them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lightning_sft.sweep.prediction.curve import first_crossing, shortfall

PredictionStatus = Literal["predicted", "already flipped", "moves away", "beyond range", "diverged", "unsettled"]


class GapRunner(Protocol):
    """Protocol: train some steps from one fixed state and read the gaps z_c - z_s."""

    def __call__(self, rates: Sequence[float]) -> list[list[float]]:
        """Take one optimizer step at each rate, from the start.

        Args:
            rates: one for each step, each for an optimizer whose gain is 1; with none, the gaps are only read.

        Returns:
            Gaps in logits, (steps + 1, probes): before the first step, and after each.
        """


@dataclass(frozen=True)
class ShortRun:
    """A short run of equal steps.

    Attributes:
        rate: progress of each step: its rate times the optimizer's gain.
        gaps: before the first step and after each, (steps + 1, probes).
    """

    rate: float
    gaps: list[list[float]]

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return len(self.gaps) - 1

    @property
    def total(self) -> float:
        """Progress of all steps."""
        return self.rate * self.steps


@dataclass(frozen=True)
class Target:
    """The run whose critical rate is asked for.

    Progress is rate times gain: what a step moves a weight under a steady gradient (`step_gains`).

    Attributes:
        shares: each step's rate as a share of the peak rate, (steps,).
        gains: of the optimizer from its first step on, (steps or more,); empty: 1 in each.
        beta: decay of the optimizer's first moment.
    """

    shares: tuple[float, ...]
    beta: float
    gains: tuple[float, ...] = ()

    @property
    def multiplier(self) -> float:
        """Its progress at a peak rate of 1: the number of steps under a constant rate and gains of 1."""
        return sum(self._progress)

    @property
    def weights(self) -> list[float]:
        """Share of each step in its progress, (steps,)."""
        return [part / self.multiplier for part in self._progress]

    @property
    def way(self) -> list[float]:
        """Progress at a peak rate of 1 before the first step and after each, (steps + 1,)."""
        return [0.0, *itertools.accumulate(self._progress)]

    @property
    def _progress(self) -> list[float]:
        gains = self.gains or (1.0,) * len(self.shares)
        return [share * gain for share, gain in zip(self.shares, gains, strict=False)]


@dataclass(frozen=True)
class Estimate:
    """The estimate for one gap, from short runs.

    Attributes:
        status: ``predicted``; ``already flipped``: D0 <= 0; ``moves away``: v <= 0; ``beyond range``: it moves the
            right way, but no run came near the crossing; ``diverged``: the gap became no number; ``unsettled``: replays
            settled on no rate, or depend on how many gradients they get, so that only a sweep can tell.
        d0: z_s - z_c at the start, in logits.
        slope: v, change of the gap per unit of cumulated rate, at the start; None without a finite run.
        curvature: d0 * d2gap/dtau2 / slope^2: 0 for uniform motion, above for acceleration.
        lr: predicted critical rate; None unless predicted.
        low: lower end of the interval.
        high: its upper end.
        uniform_lr: d0 / (v * sum of rates): the rate at which the kinematic number is 1.
    """

    status: PredictionStatus
    d0: float
    slope: float | None = None
    curvature: float | None = None
    lr: float | None = None
    low: float | None = None
    high: float | None = None
    uniform_lr: float | None = None


#: Width of the interval: the half-width in log rate is the root of the sum of squares of these, each times what it
#: stands beside. Set on one half of the shipped probes (docs/critical_learning_rate.md).
FLOOR = 0.008
OF_CORRECTION = 0.2  # of the correction for step size
OF_TURN = 0.03  # of the log ratio of the largest to the smallest step of the gap in the last run
OF_REACH = 0.1  # of the distance between the end of the last run and the crossing
OF_SHAPE = 0.01  # under a schedule whose rates differ, which short runs of equal steps do not follow
NOTHING_TO_COMPARE = 0.1  # if there is only one run, so that the correction is unknown

NEAR = 1.12  # a run is near the crossing if it ends within this factor of it
MOST_SHORT_RUNS = 6  #: at most so many runs of two steps
LONGEST_STRIDE = 30.0  # most that the next feeler changes the sum of rates


def plan_runs(run: GapRunner, gap: Callable[[Sequence[float]], float], start: float, fine: int = 4) -> list[ShortRun]:
    """Make runs of two steps until one ends near the crossing, and one of ``fine`` steps with the same sum of rates.

    Args:
        run: the trainer.
        gap: reduces the gaps of all probes to the number that is to cross zero.
        start: first sum of rates, for each logit that must be made up.
        fine: steps of the last run.

    Returns:
        The runs in the order they were made; one without a step comes first.
    """
    first = ShortRun(0.0, run(()))
    runs = [first]
    d0 = -gap(first.gaps[0])
    if not d0 > 0:
        return runs
    total = start * d0
    for _ in range(MOST_SHORT_RUNS):
        runs.append(ShortRun(total / 2, run((total / 2,) * 2)))
        gaps = [gap(row) for row in runs[-1].gaps]
        factor = _next_factor(gaps)
        closed_in = _between(runs, gap) or total * factor
        if any(1 / NEAR <= f <= NEAR for f in (factor, closed_in / total)):
            return [*runs, ShortRun(total / fine, run((total / fine,) * fine))]
        if gaps[-1] <= gaps[0] and len(runs) > 2:
            break  # a feeler made much shorter than another one moves the wrong way, too
        total = closed_in
    return runs


def _between(runs: Sequence[ShortRun], gap: Callable[[Sequence[float]], float]) -> float | None:
    """Return the sum of rates at which a two-step run would end at zero, if one ended below and a longer one above.

    A gap that slows down makes parabolas point too far, and they would do so again and again.
    """
    ends = [(r.total, gap(r.gaps[-1]), max(map(gap, r.gaps))) for r in runs if r.steps]
    above = min(((total, end) for total, end, _ in ends if end > 0), default=None)
    below = max(((t, end) for t, end, most in ends if most <= 0 and above and t < above[0]), default=None)
    if above is None or below is None:
        return None
    return below[0] + (above[0] - below[0]) * below[1] / (below[1] - above[1])


def _next_factor(gaps: Sequence[float]) -> float:
    """Return the factor on the sum of rates that should end at the crossing, judged by a two-step run."""
    if not all(map(math.isfinite, gaps)) or gaps[-1] <= gaps[0]:
        return 1 / 8  # too far, or away: a shorter one will tell
    crossing = first_crossing(gaps) / (len(gaps) - 1)
    if math.isfinite(crossing):
        return max(crossing, 1 / LONGEST_STRIDE)
    return min(max(-gaps[0] / (gaps[-1] - gaps[0]), 2.0), LONGEST_STRIDE)


def estimate(runs: Sequence[ShortRun], gap: Callable[[Sequence[float]], float], target: Target) -> Estimate:
    """Estimate the rate at which one gap crosses zero.

    The crossing of the last run, corrected for its step size: two runs with the same sum of rates and different steps
    tell how much step size matters, and the optimizer's lag tells how it goes on to the target's steps.

    Args:
        runs: from `plan_runs`, whichever gap they were planned for.
        gap: reduces the gaps of all probes to one number.
        target: the run that is asked about.
    """
    curves = [(r, [gap(row) for row in r.gaps]) for r in runs]
    d0 = -curves[0][1][0]
    if math.isnan(d0):
        return Estimate("diverged", d0)
    if d0 <= 0:
        return Estimate("already flipped", d0)
    curves = [(r, gaps) for r, gaps in curves if r.steps and all(map(math.isfinite, gaps))]
    if not curves:
        return Estimate("diverged", d0)
    shortest, gaps = min(curves, key=lambda c: c[0].total)
    if gaps[-1] <= gaps[0]:
        return Estimate("moves away", d0, (gaps[-1] - gaps[0]) / shortest.total)
    slope = (4 * gaps[1] - 3 * gaps[0] - gaps[2]) / (2 * shortest.rate)  # of the parabola, at the start
    second = (gaps[2] - 2 * gaps[1] + gaps[0]) / shortest.rate**2
    curvature = d0 * second / slope**2 if slope else math.inf
    uniform = d0 / slope / target.multiplier if slope > 0 else None
    found = _crossing(curves, target)
    if found is None:
        return Estimate("beyond range", d0, slope, curvature, uniform_lr=uniform)
    total, half = found
    rate = total / target.multiplier
    low, high = rate * math.exp(-half), rate * math.exp(half)
    return Estimate("predicted", d0, slope, curvature, rate, low, high, uniform)


def _crossing(curves: Sequence[tuple[ShortRun, list[float]]], target: Target) -> tuple[float, float] | None:
    """Return the sum of rates at the target's crossing, and the half-width of its interval in log rate."""
    run, gaps = curves[-1]
    same = [g for r, g in curves[:-1] if math.isclose(r.total, run.total)]
    if not same:
        run, gaps = min(curves, key=lambda c: abs(math.log(min(first_crossing(c[1]), 1e9) / c[0].steps)))
    plain = first_crossing(gaps)
    if not same:
        if math.isinf(plain):
            return None
        return plain * run.rate, math.hypot(FLOOR, NOTHING_TO_COMPARE, OF_REACH * math.log(plain / run.steps))
    corrected = first_crossing(_refined(same[-1], gaps, target))
    if math.isinf(corrected) or math.isinf(plain):
        return None
    correction, reach = math.log(plain / corrected), math.log(corrected / run.steps)
    shape = OF_SHAPE if max(target.weights) > 1.01 * min(target.weights) else 0.0
    half = math.hypot(FLOOR, OF_CORRECTION * correction, OF_TURN * _turn(gaps), OF_REACH * reach, shape)
    return corrected * run.rate, half


def _turn(gaps: Sequence[float]) -> float:
    """Return how uneven a gap's motion is: 0 for uniform motion, at most 1."""
    moves = [b - a for a, b in itertools.pairwise(gaps)]
    return min(math.log(max(moves) / min(moves)), 1.0) if min(moves) > 0 else 1.0


def _refined(coarse: Sequence[float], fine: Sequence[float], target: Target) -> list[float]:
    """Return the gaps of the fine run as they would be under the target's step sizes.

    Args:
        coarse: gaps of a run of fewer steps with the same sum of rates.
        fine: gaps of the fine run.
        target: the run that is asked about.
    """
    steps = len(fine) - 1
    lacks = [shortfall(n, target.weights, target.beta) for n in range(steps + 1)]
    amplitude = (fine[-1] - coarse[-1]) / (shortfall(len(coarse) - 1, target.weights, target.beta) - lacks[-1])
    return [gap + amplitude * (k / steps) ** 2 * lacks[k] for k, gap in enumerate(fine)]
