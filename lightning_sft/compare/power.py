"""Which difference a number of replicates can resolve, and how many a difference needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_sft.compare.statistics import LEVEL
from lightning_sft.errors import UserError

#: the share of comparisons with a true difference of that size in which it is to be found
POWER = 0.8
#: more replicates than this are not asked for
MOST = 10_000


def power(effect: float, replicates: int, level: float = LEVEL) -> float:
    """Return how often a two-sided paired t-test finds a difference.

    Args:
        effect: the true mean difference in standard deviations of the paired differences.
        replicates: number of pairs.
        level: of the test.

    >>> round(power(1.15, 8), 2)
    0.8
    """
    if replicates < 2:
        return 0.0
    from scipy.special import nctdtr, stdtrit

    degrees, shift = replicates - 1, abs(effect) * math.sqrt(replicates)
    edge = float(stdtrit(degrees, 1 - level / 2))
    above = 1 - float(nctdtr(degrees, shift, edge))
    below = float(nctdtr(degrees, shift, -edge))
    return above + (below if math.isfinite(below) else 0.0)  # far out, scipy's sum for the other side is no number


def resolvable(replicates: int, arms: int = 2) -> float:
    """Return the smallest difference found with 80% power, in standard deviations of the paired differences.

    Args:
        replicates: 2 or more.
        arms: their number, the first included: Holm's smallest p-value must pass 5% / (arms - 1).

    >>> round(resolvable(8), 2)
    1.16
    """
    _check(replicates, arms)
    low, high = 0.0, 1.0
    level = LEVEL / (arms - 1)
    while power(high, replicates, level) < POWER:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, replicates, level) < POWER else (low, middle)
    return high


def needed(effect: float, arms: int = 2) -> int | None:
    """Return the replicates that find a difference with 80% power; None if more than 10000.

    Args:
        effect: the difference in standard deviations of the paired differences.
        arms: their number, the first included.

    >>> needed(1.0), needed(0.5)
    (10, 34)
    """
    if not effect > 0:
        raise UserError(f"The difference to resolve is {effect} standard deviations. Allowed: above 0.")
    level = LEVEL / (arms - 1)
    low, high = 1, 2
    while power(effect, high, level) < POWER:
        low, high = high, 2 * high
        if low > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power(effect, middle, level) < POWER else (low, middle)
    return high


@dataclass(frozen=True)
class Resolution:
    """What a comparison can resolve, for people.

    Attributes:
        replicates: pairs.
        arms: number of arms, the first included.
        spread: standard deviation of the paired differences, as far as it is known: of an earlier run of the same
            comparison, or as given.
        wish: the difference that is wished for, in the score's units.
    """

    replicates: int
    arms: int
    spread: float | None = None
    wish: float | None = None

    def text(self) -> str:
        """Return what the replicates resolve, in sentences."""
        smallest = resolvable(self.replicates, self.arms)
        lines = [
            f"{self.replicates} replicates and {self.arms} arms: a difference of {smallest:.2f} standard deviations "
            "(of the paired differences between replicates) is found in 80% of such comparisons, at a level of 5% over "
            "all arms (Holm)."
        ]
        if self.spread is not None and self.spread > 0:
            lines.append(f"With a standard deviation of {self.spread:.4g} that is a difference of "
                         f"{smallest * self.spread:.4g}.")  # fmt: skip
            if self.wish is not None:
                count = needed(self.wish / self.spread, self.arms)
                lines.append(f"A difference of {self.wish:.4g} needs {count or f'more than {MOST}'} replicates.")
        elif self.wish is not None:
            rows = ", ".join(f"{needed(e, self.arms)} if that is {e:g} standard deviations" for e in (2, 1, 0.5))
            lines.append(
                f"What a difference of {self.wish:.4g} needs depends on the standard deviation, which nobody knows "
                f"before a run: {rows}. Give --spread, or ask again when some replicates have finished."
            )
        if self.replicates < 4:
            lines.append(
                f"{self.replicates} replicates give wide intervals: t is "
                f"{_quantile(self.replicates):.1f} instead of 2.0. Eight resolve {resolvable(8, self.arms):.2f} "
                "standard deviations."
            )
        return " ".join(lines)


def _quantile(replicates: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(replicates - 1, 1 - LEVEL / 2))


def _check(replicates: int, arms: int) -> None:
    if replicates < 2 or arms < 2:
        raise UserError(f"There are {replicates} replicates and {arms} arms. Allowed: 2 or more of both.")
