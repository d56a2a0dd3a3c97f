"""Each arm's own learning rate by equal trials, on a grid that grows: pure functions of what was found so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_sft.errors import UserError
from lightning_sft.sweep.search import geometric_grid

#: arm -> rate -> what is maximised, compared item by item; -inf where the run diverged
Found = Mapping[str, Mapping[float, tuple[float, ...]]]


@dataclass(frozen=True)
class RateSearch:
    """How rates are searched for, the same for every arm.

    Attributes:
        low: lowest rate of the first grid.
        high: highest.
        points: rates of the first grid; 0 leaves every arm the rate of its configuration.
        refine: rounds of two further rates around each arm's best, each halving the distance on a log scale.
        grow: the most rates that are added at either end, for all arms, while any arm's best is there.
    """

    low: float = 1e-6
    high: float = 1e-2
    points: int = 5
    refine: int = 1
    grow: int = 3

    def __post_init__(self) -> None:
        if self.points not in (0, *range(3, 1000)) or self.refine < 0 or self.grow < 0:
            raise UserError(
                f"points is {self.points}, refine is {self.refine}, grow is {self.grow}. Allowed: points of 3 or more "
                "(or 0: every arm keeps the rate of its configuration), refine and grow of 0 or more."
            )
        if self.points:
            geometric_grid(self.low, self.high, self.points)


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Attributes:
        wanted: arm -> rates to try now, all of them independent of each other.
        best: arm -> its best rate, once nothing is wanted.
        at_edge: arm -> ``low`` or ``high`` where its best is the lowest or highest rate of a grid that may not grow
            any more.
        grid: the common grid, grown.
        tried: arm -> all rates that were tried, once nothing is wanted.
    """

    wanted: dict[str, list[float]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    at_edge: dict[str, str] = field(default_factory=dict)
    grid: list[float] = field(default_factory=list)
    tried: dict[str, list[float]] = field(default_factory=dict)


def search(setting: RateSearch, arms: list[str], found: Found) -> Progress:
    """Say what to try next, or each arm's best rate; every arm gets equally many trials.

    Among equal outcomes the lowest rate is taken. An arm that diverged everywhere has its best at the low end.

    Args:
        setting: of the search.
        arms: names.
        found: what the trials have given so far.
    """
    grid = geometric_grid(setting.low, setting.high, setting.points)
    ratio = (setting.high / setting.low) ** (1 / (setting.points - 1))
    below = above = 0
    while True:
        missing = _missing(found, dict.fromkeys(arms, grid))
        if missing:
            return Progress(missing, grid=grid)
        ends = {_best(found[arm], grid) for arm in arms} & {grid[0], grid[-1]}
        more_below, more_above = grid[0] in ends and below < setting.grow, grid[-1] in ends and above < setting.grow
        if not (more_below or more_above):
            break
        below, above = below + more_below, above + more_above
        grid = [*([_short(grid[0] / ratio)] if more_below else []), *grid]
        grid += [_short(grid[-1] * ratio)] if more_above else []
    tried = {arm: list(grid) for arm in arms}
    for _ in range(setting.refine):
        ratio = math.sqrt(ratio)
        for arm in arms:
            best = _best(found[arm], tried[arm])
            tried[arm] = tried[arm] + [_short(best / ratio), _short(best * ratio)]
        missing = _missing(found, tried)
        if missing:
            return Progress(missing, grid=grid)
    best_of = {arm: _best(found[arm], tried[arm]) for arm in arms}
    sides = {arm: "low" if best_of[arm] <= min(tried[arm]) else "high" for arm in arms}
    edges = {arm: sides[arm] for arm in arms if best_of[arm] in (min(tried[arm]), max(tried[arm]))}
    return Progress(best=best_of, at_edge=edges, grid=grid, tried=tried)


def _missing(found: Found, rates: Mapping[str, list[float]]) -> dict[str, list[float]]:
    missing = {arm: [rate for rate in own if rate not in found.get(arm, {})] for arm, own in rates.items()}
    return {arm: own for arm, own in missing.items() if own}


def _best(outcomes: Mapping[float, tuple[float, ...]], rates: list[float]) -> float:
    return max(sorted(rates), key=outcomes.__getitem__)


def _short(rate: float) -> float:
    return float(f"{rate:.12g}")  # as the first grid's: short numbers, the same however they were reached
