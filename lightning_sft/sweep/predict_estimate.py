"""A critical rate from a few short runs: which runs to make, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from lightning_sft.sweep.predict_curve import first_crossing, shortfall

Status = Literal["predicted", "already flipped", "moves away", "beyond range", "diverged"]


class GapRunner(Protocol):
    """Trains from one and the same state, and reads the gaps z_c - z_s."""

    def __call__(self, rates: Sequence[float]) -> list[list[float]]:
        """Take one optimizer step at each rate, from the start.

        Args:
            rates: one for each step; with none, the gaps are only read.

        Returns:
            Gaps in logits, (steps + 1, probes): before the first step, and after each.
        """


@dataclass(frozen=True)
class Run:
    """A short run of equal steps.

    Attributes:
        rate: of each step.
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
        """Sum of the rates."""
        return self.rate * self.steps


@dataclass(frozen=True)
class Target:
    """The run whose critical rate is asked for.

    Attributes:
        weights: share of each of its steps in its sum of rates, (steps,).
        multiplier: its sum of rates at a peak rate of 1; the number of steps under a constant rate.
        beta: of the optimizer's first moment.
    """

    weights: tuple[float, ...]
    multiplier: float
    beta: float


@dataclass(frozen=True)
class Estimate:
    """What short runs say about one gap.

    Attributes:
        status: ``predicted``; ``already flipped``: D0 <= 0; ``moves away``: v <= 0; ``beyond range``: it moves the
            right way, but no run came near the crossing; ``diverged``: the gap became no number.
        d0: z_s - z_c at the start, in logits.
        slope: v, change of the gap per unit of cumulated rate, at the start; None without a finite run.
        curvature: d0 * d2gap/dtau2 / slope^2: 0 for uniform motion, above for acceleration.
        lr: predicted critical rate; None unless predicted.
        low: lower end of the interval.
        high: its upper end.
        uniform_lr: d0 / (v * sum of rates): the rate at which the kinematic number is 1.
    """

    status: Status
    d0: float
    slope: float | None = None
    curvature: float | None = None
    lr: float | None = None
    low: float | None = None
    high: float | None = None
    uniform_lr: float | None = None


#: Width of the interval: the half-width in log rate is the root of the sum of squares of these, each times what it
#: stands beside. Set on one half of the shipped probes (docs/critical_learning_rate.md).
FLOOR = 0.004
OF_CORRECTION = 0.2  # of the correction for step size
OF_REACH = 0.1  # of the distance between the end of the last run and the crossing
NOTHING_TO_COMPARE = 0.1  # if there is only one run, so that the correction is unknown

NEAR = 1.2  # a run is near the crossing if it ends within this factor of it
FEELERS = 4  # most runs of two steps
LONGEST_STRIDE = 30.0  # most that the next feeler changes the sum of rates


def plan_runs(run: GapRunner, gap: Callable[[Sequence[float]], float], start: float, fine: int = 4) -> list[Run]:
    """Make runs of two steps until one ends near the crossing, and one of ``fine`` steps to the crossing.

    Args:
        run: the trainer.
        gap: makes one number of the gaps of all probes; it is the one to cross zero.
        start: first sum of rates, for each logit that must be made up.
        fine: steps of the last run.

    Returns:
        The runs in the order they were made; one without a step comes first.
    """
    first = Run(0.0, run(()))
    runs = [first]
    d0 = -gap(first.gaps[0])
    if not d0 > 0:
        return runs
    total = start * d0
    for _ in range(FEELERS):
        runs.append(Run(total / 2, run((total / 2,) * 2)))
        factor = _next_factor([gap(row) for row in runs[-1].gaps])
        total *= factor
        if 1 / NEAR <= factor <= NEAR:
            return [*runs, Run(total / fine, run((total / fine,) * fine))]
        if factor < 1 / LONGEST_STRIDE or _moves_away([gap(row) for row in runs[-1].gaps], len(runs)):
            break
    return runs


def _moves_away(gaps: Sequence[float], runs: int) -> bool:
    """Return whether a second feeler, made much shorter than the first, still moves the wrong way."""
    return runs > 2 and gaps[-1] <= gaps[0]


def _next_factor(gaps: Sequence[float]) -> float:
    """Return by what to multiply the sum of rates to end at the crossing, as far as a feeler can tell."""
    if not all(map(math.isfinite, gaps)) or gaps[-1] <= gaps[0]:
        return 1 / 8  # too far, or away: a shorter one will tell
    crossing = first_crossing(gaps) / (len(gaps) - 1)
    if math.isfinite(crossing):
        return max(crossing, 1 / LONGEST_STRIDE)
    return min(max(-gaps[0] / (gaps[-1] - gaps[0]), 2.0), LONGEST_STRIDE)


def estimate(runs: Sequence[Run], gap: Callable[[Sequence[float]], float], target: Target) -> Estimate:
    """Say what runs tell about the rate at which one gap crosses zero.

    The crossing of the run with the most steps, corrected for its step size: two runs of different step sizes tell how
    much it matters, and the optimizer's lag tells how it goes on to the target's steps.

    Args:
        runs: from :func:`plan_runs`, whichever gap they were planned for.
        gap: makes one number of the gaps of all probes.
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
    slope = (gaps[1] - gaps[0]) / shortest.rate
    second = (gaps[2] - 2 * gaps[1] + gaps[0]) / shortest.rate**2
    curvature = d0 * second / slope**2 if slope else math.inf
    uniform = d0 / slope / target.multiplier if slope > 0 else None
    crossings = [_Seen(r.steps, r.rate * t, t) for r, t in ((r, first_crossing(g)) for r, g in curves) if t < math.inf]
    if not crossings:
        return Estimate("beyond range", d0, slope, curvature, uniform_lr=uniform)
    centre, half = _combined(crossings, target)
    rate = centre / target.multiplier
    return Estimate(
        "predicted", d0, slope, curvature, rate, rate * math.exp(-half), rate * math.exp(half), uniform_lr=uniform
    )


@dataclass(frozen=True)
class _Seen:
    """A crossing: steps of the run, sum of rates at the crossing, and after how many steps it came."""

    steps: int
    total: float
    crossing: float

    @property
    def reach(self) -> float:
        """|log| of the crossing over the end of the run."""
        return abs(math.log(self.crossing / self.steps))


def _combined(seen: Sequence[_Seen], target: Target) -> tuple[float, float]:
    """Return the sum of rates at the target's crossing, and the half-width of its interval in log rate."""
    best = min(seen, key=lambda s: (-s.steps, s.reach))
    others = [s for s in seen if s.steps < best.steps]
    if not others:
        return best.total, math.hypot(FLOOR, NOTHING_TO_COMPARE, OF_REACH * best.reach)
    other = min(others, key=lambda s: s.reach)
    at_best, at_other = (shortfall(s.crossing, target.weights, target.beta) for s in (best, other))
    difference = math.log(other.total / best.total)
    correction = difference * at_best / (at_other - at_best) if at_other != at_best else 0.0
    half = math.hypot(FLOOR, OF_CORRECTION * correction, OF_REACH * (best.reach + other.reach))
    return best.total * math.exp(-correction), half
