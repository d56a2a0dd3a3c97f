"""A mean over seeds, with its interval by Student's t distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its t-interval; the bounds are None with one seed.

    Attributes:
        mean: over the seeds.
        low: lower bound.
        high: upper bound.
    """

    mean: float
    low: float | None
    high: float | None

    @override
    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return mean and t-interval of independent values, one a seed.

    The half-width is t * s / sqrt(n): s the standard deviation of the n values with n - 1 in its denominator, t the
    quantile of Student's distribution with n - 1 degrees of freedom.

    Args:
        values: one or more.
        confidence: the share of such intervals that hold the true mean, if the values are normal.

    >>> print(interval([1.0, 2.0, 3.0]))
    2.0000 [-0.4841, 4.4841]
    """
    mean = statistics.fmean(values)
    if len(values) < 2 or not math.isfinite(mean):
        return Interval(mean, None, None)
    from scipy.special import stdtrit  # half a second that only a comparison needs

    quantile = float(stdtrit(len(values) - 1, (1 + confidence) / 2))
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
