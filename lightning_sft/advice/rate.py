"""Whether the learning rate of a run is sane, by the curve of a short range test."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_sft.sweep.results import RangeTest

Verdict = Literal["sane", "high", "at the edge", "too high", "very low", "unknown", "diverges at once"]
#: steps of a range test in which a curve can show anything
_FEWEST = 4
#: factor between two rates of a range test above which so few steps say nothing of where it diverges
_COARSE = 5.0
#: how far below the rate at which the curve is lowest a careful one lies; the usual rule
CAREFUL = 10.0
#: a rate this many times below the careful one is called very low; ours
_VERY_LOW = 30.0
#: a rate up to this many times that at which the curve is lowest is at the edge, and not yet called too high; ours: the
#: test has no warm-up, each of its steps another batch, and its rates a distance of their own
_EDGE = 3.0
#: what the curve must fall by, as a share of its start, before it says anything; ours
_FALL = 0.02
#: the same in usual differences between two losses in a row, which is what batches differ by; ours
_JUMPS = 2.0
#: times the loss before, above which a curve has never come back; ours: training has noise and dropout
_RISEN = 1.1


@dataclass(frozen=True)
class RateReading:
    """What a range test says of a learning rate.

    Attributes:
        rate: of the run.
        verdict: on it.
        why: a sentence or two.
        suggestion: a careful rate, `CAREFUL` times below the one at which the curve is lowest; None if it has none.
        lowest: the rate at which the curve is lowest; None if the curve says nothing.
        rates: of each step.
        losses: after the step at each rate, in nats per token; the last may be nan or inf.
        curve: of the losses that are numbers, each the mean of a loss and its two neighbours.
    """

    rate: float
    verdict: Verdict
    why: str
    suggestion: float | None
    lowest: float | None
    rates: list[float]
    losses: list[float]
    curve: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dict(vars(self))


def curve_of(losses: Sequence[float]) -> list[float]:
    """Return the mean of each loss and its two neighbours, up to the first loss that is no number.

    >>> curve_of([4.0, 4.0, 1.0, 1.0, float("nan")])
    [4.0, 3.0, 2.0, 1.0]
    """
    end = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    return [statistics.fmean(losses[max(i - 1, 0) : min(i + 2, end)]) for i in range(end)]


def lowest_rate(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate at which the curve of a range test is lowest; None where it falls too little to say anything.

    Args:
        rates: of each step, rising.
        losses: after the step at each rate.
    """
    curve = curve_of(losses)
    if len(curve) < _FEWEST:
        return None
    best = min(range(len(curve)), key=curve.__getitem__)
    steps = [abs(losses[i + 1] - losses[i]) for i in range(len(curve) - 1)]
    falls = curve[0] - curve[best]
    return None if falls < max(_FALL * abs(curve[0]), _JUMPS * statistics.median(steps)) else rates[best]


def judge_rate(rate: float, test: RangeTest, before: float | None = None) -> RateReading:
    """Return what a range test says of a learning rate.

    Args:
        rate: of the run, at its peak.
        test: with rising rates; a trial that diverged ends early, or with a loss that is no number.
        before: loss before the first of its steps, in nats per token; None if unknown.
    """
    curve = curve_of(test.losses)
    lowest = lowest_rate(test.rates, test.losses)

    def reading(verdict: Verdict, why: str, lowest: float | None = None) -> RateReading:
        careful = None if lowest is None else lowest / CAREFUL
        return RateReading(rate, verdict, why, careful, lowest, test.rates, test.losses, curve)

    step = test.rates[1] / test.rates[0] if len(test.rates) > 1 else 1.0
    if len(curve) < _FEWEST and step > _COARSE:
        return reading(
            "unknown",
            f"The range test took {len(test.losses)} steps, each at {step:.0f} times the rate of the one before: too "
            "coarse to read. Take more of them: --range_steps.",
        )
    risen = before is not None and bool(curve) and min(curve) > _RISEN * before
    if len(curve) < _FEWEST or risen:
        reached = f"{test.rates[0]:.2g}" if test.rates else "the lowest rate"
        how = (
            f"never came back to the {before:.2f} that it was before" if risen else f"ended in {len(test.losses)} steps"
        )
        return reading(
            "diverges at once",
            f"The range test diverges at once, from {reached} on, and {how}: the loss blows up at every rate that was "
            "tried. Look for another cause than the rate: data that are no text, 16-bit arithmetic, weights "
            "that are damaged. Or begin lower: --range_low.",
        )
    if lowest is None:
        return reading(
            "unknown",
            f"Between {test.rates[0]:.2g} and {test.rates[-1]:.2g} the loss fell by less than {_FALL:.0%}, or by no "
            f"more than batches differ, in {len(test.losses)} steps, so the curve says nothing about the rate. A "
            "longer test might: --range_steps.",
        )
    turned = lowest < test.rates[len(curve) - 1] or len(curve) < len(test.losses)
    careful = lowest / CAREFUL
    turns = f"The curve of the range test is lowest at {lowest:.2g} and rises beyond"
    if turned and rate > max(_EDGE, step) * lowest:
        why = (
            f"{turns}; {rate:.2g} is {_times(rate / lowest)} times that. Expect an unstable run, or one that diverges."
        )
        return reading("too high", why, lowest)
    if turned and rate >= lowest:
        why = (
            f"{turns}, which is about where {rate:.2g} is. It may work in a short run, above all with warm-up. If the "
            f"run turns out unstable, or its loss stays high, take {careful:.2g}."
        )
        return reading("at the edge", why, lowest)
    if turned and rate > careful:
        why = (
            f"{turns}, {_times(lowest / rate)} times as much. The test takes one step at each rate: a whole run meets "
            f"trouble earlier, and the longer it is, the earlier. If its loss stays high, take {careful:.2g}."
        )
        return reading("high", why, lowest)
    if rate < careful / _VERY_LOW:
        why = (
            f"The curve of the range test is lowest at {lowest:.2g}; a tenth of that, a careful rate, is "
            f"{_times(careful / rate)} times as much as yours. At {rate:.2g} the run will move little."
        )
        return reading("very low", why, lowest)
    end = "" if turned else ", the highest that was tried"
    why = (
        f"The curve of the range test is lowest at {lowest:.2g}{end}, {_times(lowest / rate)} times as much. "
        "Such a test says which rates break, not which is best: `lightning compare` finds the best one of each "
        "objective."
    )
    return reading("sane", why, lowest)


def _times(factor: float) -> str:
    """Return a factor in two digits, as people write it."""
    return f"{factor:.1f}" if factor < 9.95 else f"{float(f'{factor:.2g}'):,.0f}"
