"""Suggest learning rates from the curve of a range test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Suggestions:
    """Rates that a curve of loss over rate suggests; None where the curve does not say.

    Attributes:
        steepest: where the smoothed loss falls most per factor of the rate.
        minimum_tenth: a tenth of the rate at the smoothed loss's minimum.
        valley: two thirds into the longest stretch over which the smoothed loss falls (fastai's "valley").
        edge: between the last rate that lowered the loss to its minimum and the first that raised it, if the loss
            rose far above it afterwards; None where the range ends before the edge. For gradient descent on a
            quadratic of largest curvature L this is 2/L.
    """

    steepest: float | None
    minimum_tenth: float | None
    valley: float | None
    edge: float | None

    def values(self) -> dict[str, float]:
        """Return the suggestions that the curve supports."""
        return {k: v for k, v in asdict(self).items() if v is not None}


def smoothed(losses: Sequence[float], beta: float) -> list[float]:
    """Return the exponential mean of a curve, without its bias towards zero."""
    mean, result = 0.0, []
    for i, loss in enumerate(losses, start=1):
        mean = beta * mean + (1 - beta) * loss
        result.append(mean / (1 - beta**i))
    return result


def suggest(rates: Sequence[float], losses: Sequence[float], beta: float = 0.0, rise: float = 2.0) -> Suggestions:
    """Return what a curve suggests.

    Args:
        rates: rising rates.
        losses: the loss after the step at each rate; the last may be nan or inf, where the trial ended.
        beta: how much to smooth; 0 for losses without noise, such as those of a validation set.
        rise: the edge was passed if the loss ended this many times above its minimum, or was no number.
    """
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite < 3:
        return Suggestions(None, None, None, None)
    raw, curve, logs = losses[:finite], smoothed(losses[:finite], beta), [math.log(r) for r in rates[:finite]]
    slopes = [(curve[i + 1] - curve[i - 1]) / (logs[i + 1] - logs[i - 1]) for i in range(1, finite - 1)]
    low = min(range(finite), key=curve.__getitem__)
    falling = min(range(len(slopes)), key=slopes.__getitem__)
    return Suggestions(
        steepest=rates[falling + 1] if slopes[falling] < 0 else None,
        minimum_tenth=rates[low] / 10 if low else None,
        valley=_valley(rates, curve),
        edge=_edge(rates, raw, passed=finite < len(losses), rise=rise),
    )


def _valley(rates: Sequence[float], curve: Sequence[float]) -> float | None:
    """Return the rate two thirds into the longest falling subsequence of the curve."""
    best, start = [1] * len(curve), list(range(len(curve)))
    for i in range(1, len(curve)):
        for j in range(i):
            if curve[j] > curve[i] and best[j] + 1 > best[i]:
                best[i], start[i] = best[j] + 1, start[j]
    end = max(range(len(curve)), key=best.__getitem__)
    if best[end] < 3:
        return None
    return rates[start[end] + (end - start[end]) * 2 // 3]


def _edge(rates: Sequence[float], losses: Sequence[float], *, passed: bool, rise: float) -> float | None:
    low = min(range(len(losses)), key=losses.__getitem__)
    if low + 1 >= len(rates) or not (passed or losses[-1] > rise * abs(losses[low])):
        return None
    return math.sqrt(rates[low] * rates[low + 1])
