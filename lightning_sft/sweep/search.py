"""Searches over learning rates: pure functions of outcomes, without a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lightning_sft.errors import UserError

CrossingStatus = Literal["found", "already", "never", "below"]


def geometric_grid(low: float, high: float, points: int) -> list[float]:
    """Return ``points`` rates from ``low`` to ``high``, with equal ratios.

    Raises:
        UserError: bounds that are not 0 < low < high < inf, or fewer than two points.

    >>> geometric_grid(1e-3, 1e-1, 3)
    [0.001, 0.01, 0.1]
    """
    if not 0 < low < high < math.inf:
        raise UserError(f"The sweep goes from low={low} to high={high}. Allowed: 0 < low < high.")
    if points < 2:
        raise UserError(f"The sweep has {points} points. Allowed: 2 or more.")
    inner = (low * (high / low) ** (i / (points - 1)) for i in range(1, points - 1))
    return [low, *(float(f"{rate:.12g}") for rate in inner), high]  # short numbers: they are typed on command lines


def check_divergence(divergence: float) -> None:
    """Raise unless a trial may end at this multiple of its first loss.

    Raises:
        UserError: it is not above 1.
    """
    if not divergence > 1:
        raise UserError(f"divergence is {divergence}. Allowed: above 1, a multiple of the first loss.")


@dataclass(frozen=True)
class Crossing:
    """Where outcomes change from "not yet" to "yes", as far as the trials show.

    Attributes:
        status: ``found``: between ``lower`` and ``upper``; ``already``: before any step; ``never``: at no rate that
            was tried; ``below``: at every rate, the lowest included.
        lower: the largest rate below ``upper`` at which it was not yet so; None without one.
        upper: the smallest rate at which it was so; None without one.
        outcomes: rate -> whether it was so, by rising rate.
    """

    status: CrossingStatus
    lower: float | None
    upper: float | None
    outcomes: dict[float, bool]

    @property
    def resolution(self) -> float | None:
        """Width of the bracket as upper / lower - 1, None where there is none."""
        return self.upper / self.lower - 1 if self.lower and self.upper else None

    @property
    def relapses(self) -> list[float]:
        """Rates above ``upper`` at which it was not so: the outcome is no monotonic function of the rate."""
        return [r for r, passed in self.outcomes.items() if self.upper is not None and r > self.upper and not passed]


def crossing(outcomes: Mapping[float, bool]) -> Crossing:
    """Return what outcomes at some rates say about the smallest rate at which it is so."""
    ordered = dict(sorted(outcomes.items()))
    upper = next((rate for rate, passed in ordered.items() if passed), None)
    if upper is None:
        return Crossing("never", max(ordered, default=None), None, ordered)
    below = [rate for rate in ordered if rate < upper]
    return Crossing("found" if below else "below", max(below, default=None), upper, ordered)


def find_crossing(
    passes: Callable[[Sequence[float]], Mapping[float, bool]], grid: list[float], resolution: float, workers: int = 1
) -> Crossing:
    """Find the smallest rate at which a trial passes: every point of the grid, then a bracket that is split.

    Args:
        passes: runs a trial at each of some rates, which do not depend on each other, and returns which of them passed.
        grid: rates to try first, all of them, so that relapses above the crossing are seen.
        resolution: the bracket's upper / lower - 1 to reach.
        workers: that share the trials: they split a bracket into one part more than they are. One bisects.

    Raises:
        UserError: a resolution that is not positive.
    """
    check_resolution(resolution)
    outcomes: dict[float, bool] = {}
    while rates := rates_to_try(outcomes, grid, resolution, workers):
        outcomes |= passes(rates)
    return crossing(outcomes)


def most_trials(grid: list[float], resolution: float, workers: int = 1) -> int:
    """Return how many trials `find_crossing` runs at most: the grid, and all splits of its widest bracket.

    >>> most_trials([1.0, 16.0], 0.02, workers=3), most_trials([1.0, 16.0], 20.0)
    (13, 2)
    """
    width = max((math.log(high / low) for low, high in pairwise(grid)), default=0.0)
    trials = len(grid)
    while math.expm1(width) > resolution:
        parts = max(2, min(workers + 1, math.ceil(width / math.log1p(resolution) - 1e-9)))
        trials, width = trials + parts - 1, width / parts
    return trials


def rates_to_try(outcomes: Mapping[float, bool], grid: list[float], resolution: float, workers: int = 1) -> list[float]:
    """Return the rates that a search tries next, independent of each other; none when it is done.

    Parts of a bracket are equal on a log scale, and no more than the resolution needs.

    Args:
        outcomes: rate -> whether it passed.
        grid: rates to try first.
        resolution: the bracket's upper / lower - 1 to reach.
        workers: see `find_crossing`.

    >>> rates_to_try({1.0: False, 16.0: True}, [1.0, 16.0], 0.02, workers=3)
    [2.0, 4.0, 8.0]
    """
    missing = [rate for rate in grid if rate not in outcomes]
    if missing:
        return missing
    found = crossing(outcomes)
    if found.lower is None or found.upper is None or found.upper / found.lower - 1 <= resolution:
        return []
    width = math.log(found.upper / found.lower)
    parts = max(2, min(workers + 1, math.ceil(width / math.log1p(resolution) - 1e-9)))
    between = (float(f"{found.lower * math.exp(width * i / parts):.12g}") for i in range(1, parts))
    return sorted({rate for rate in between if found.lower < rate < found.upper})


def check_resolution(resolution: float) -> None:
    """Raise `UserError` for a resolution that bisection cannot reach."""
    if not 1e-6 <= resolution < math.inf:
        raise UserError(f"resolution is {resolution}. Allowed: 1e-6 or more; 0.02 is a bracket of 2%.")
