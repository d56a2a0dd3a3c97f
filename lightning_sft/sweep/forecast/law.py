"""From short runs to the step at which a gap crosses zero: arithmetic alone.

Progress is the rate times the optimizer's gain, summed over steps (`step_gains`). The run makes its progress in many
small steps, a stretch makes the same in few large ones: ``fine`` in some, ``coarse`` in half as many. Where the two
agree, step size matters little, and the gap is a function of progress. The first steps are taken at the run's own
rates (``own``), and anchor the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_sft.sweep.prediction.curve import crossing_between

Outcome = Literal["flips", "flips by", "not by the end", "already ahead", "cannot predict this"]
#: Stretches that put the crossing further apart than this factor say nothing.
MOST_APART = 2.0
#: half-width of the 80% interval in log steps: root of the sum of squares of a floor and of a share of what the
#: stretches differ by
FLOOR = 0.12
OF_APART = 0.4
#: A flip beyond this multiple of the steps at the run's own rates is late: on a real model all 16 such forecasts were
#: too late, by up to a factor of two, and 13 of 16 by no more than `LATE`: docs/how_to/forecast.md.
LATE_FROM = 2.5
LATE = 1.8


@dataclass(frozen=True)
class Stretch:
    """A short run.

    Attributes:
        progress: before its first step and after each, (readings,).
        gaps: z_c - z_s at these, (readings, probes).
        losses: of its steps, nats a token.
        complete: whether it took all its steps; it did not where the loss rose too far.
    """

    progress: list[float]
    gaps: list[list[float]]
    losses: list[float]
    complete: bool = True


@dataclass(frozen=True)
class ProbeForecast:
    """What is forecast of one probe.

    Attributes:
        probe: its name.
        start: z_c - z_s where the forecast was made, in logits.
        outcome: ``flips``; ``flips by``: at the step or earlier; ``not by the end``; ``already ahead``; or ``cannot
            predict this``.
        step: optimizer step of the run after which it is ahead; None without one. Beyond the end it says when a run
            that went on would have flipped it.
        low: lower end of its 80% interval.
        high: the upper end; may lie beyond the end of the run.
        progress: at the crossing, as a share of the whole run's; proportional to the rate.
        why: what was in the way of a forecast.
    """

    probe: str
    start: float
    outcome: Outcome
    step: float | None = None
    low: float | None = None
    high: float | None = None
    progress: float | None = None
    why: str = ""


def forecast(
    name: str, column: int, own: Stretch, coarse: Stretch, fine: Stretch, way: Sequence[float], at: int = 0
) -> ProbeForecast:
    """Forecast one probe.

    Args:
        name: of the probe.
        column: its place in the readings.
        own: the first steps at the run's own rates.
        coarse: few steps to the end of the run's progress, or as far as they went.
        fine: twice as many.
        way: the run's progress before its next step and after each to come, (steps + 1,).
        at: steps that the run has behind it.
    """
    start = own.gaps[0][column]
    if not math.isfinite(start):
        return ProbeForecast(name, start, "cannot predict this", why="its gap is no number")
    if start > 0:
        return ProbeForecast(name, start, "already ahead", float(at), float(at), float(at), 0.0)
    if not (fine.complete and coarse.complete):
        return ProbeForecast(name, start, "cannot predict this", why="the loss rose in large steps")
    near, far = (_crossing(_anchored(own, stretch, column)) for stretch in (fine, coarse))
    if math.isinf(near):
        if 2 * fine.progress[-1] < way[-1]:
            return ProbeForecast(name, start, "cannot predict this", why="it lies beyond the reach of the short runs")
        if math.isfinite(far) and _moved(fine, column) > 0:
            why = "the short runs disagree about whether it flips"
            return ProbeForecast(name, start, "cannot predict this", why=why)
        return ProbeForecast(name, start, "not by the end")
    apart = abs(math.log(far / near)) if math.isfinite(far) else math.log(MOST_APART)
    if apart > math.log(MOST_APART):
        return ProbeForecast(name, start, "cannot predict this", why="the short runs disagree about when it flips")
    half = math.hypot(FLOOR, OF_APART * apart)
    step, low, high = (at + step_at(way, near * math.exp(x)) for x in (0.0, -half, half))
    late = step - at > LATE_FROM * (len(own.progress) - 1)
    if late:
        low = min(low, at + (step - at) / LATE)
    outcome: Outcome = "not by the end" if near > way[-1] else "flips by" if late else "flips"
    if outcome == "not by the end" and low < at + len(way) - 1:
        # short runs in large steps see flips too late rather than too early
        why = f"it flips near the end or beyond it (from step {low:.0f} on)"
        return ProbeForecast(name, start, "cannot predict this", why=why)
    return ProbeForecast(name, start, outcome, step, low, high, near / way[-1])


def _anchored(own: Stretch, stretch: Stretch, column: int) -> tuple[list[float], list[float]]:
    """Return progress and gaps: the own steps, and from their end on what the stretch moves."""
    end, last = own.progress[-1], own.gaps[-1][column]
    shift = last - _at(stretch.progress, [row[column] for row in stretch.gaps], end)
    beyond = [(p, row[column] + shift) for p, row in zip(stretch.progress, stretch.gaps, strict=True) if p > end]
    points = [*zip(own.progress, [row[column] for row in own.gaps], strict=True), *beyond]
    return [p for p, _ in points], [gap for _, gap in points]


def _crossing(points: tuple[list[float], list[float]]) -> float:
    """Return the progress at which a gap crosses zero; infinity if it does not come near."""
    progress, gaps = points
    if not all(map(math.isfinite, gaps)):
        return math.inf
    return crossing_between(progress, gaps)


def _moved(stretch: Stretch, column: int) -> float:
    return stretch.gaps[-1][column] - stretch.gaps[0][column]


def _at(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Return the value at x of a line through points; beyond the last, the last one."""
    for i in range(1, len(xs)):
        if x <= xs[i]:
            share = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
            return ys[i - 1] + share * (ys[i] - ys[i - 1])
    return ys[-1]


def step_at(way: Sequence[float], progress: float) -> float:
    """Return after how many steps a run has made some progress; beyond its end at the mean speed of the whole run."""
    if progress > way[-1]:
        return (len(way) - 1) * progress / way[-1]
    for step in range(1, len(way)):
        if way[step] >= progress > way[step - 1]:
            return step - 1 + (progress - way[step - 1]) / (way[step] - way[step - 1])
    return 0.0


def rate_for_share(
    forecasts: Sequence[ProbeForecast], share: float, peak: float, at: int = 0
) -> tuple[float, float, float] | None:
    """Return the peak rate at which a share of the probes flips by the end, with its interval.

    Progress is proportional to the rate, so the rate is the peak times the progress at the crossing of the probe that
    makes the share full.

    Args:
        forecasts: of all probes.
        share: of them.
        peak: rate of the run.
        at: steps that the run has behind it, which no rate changes.

    Returns:
        Rate, low, high; None if too few of the probes have a forecast, or enough are ahead already.
    """
    needed = math.ceil(share * len(forecasts) - 1e-9)
    known = sorted(((f.progress, f) for f in forecasts if f.progress is not None), key=lambda pair: pair[0])
    if len(known) < needed or known[needed - 1][0] == 0:
        return None
    progress, of = known[needed - 1]
    assert of.step is not None
    assert of.low is not None
    assert of.high is not None
    rate, steps = peak * progress, of.step - at
    return rate, rate * (of.low - at) / steps, rate * (of.high - at) / steps
