"""Statistics of arms over paired replicates: pure functions of numbers.

A replicate is a seed together with its own draw of training rows and of judged rows; all arms share it. One paired
t-interval over replicates then covers the order of rows, which rows were trained on, and which were judged.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_sft.sweep.intervals import Interval, interval

#: share of comparisons without any difference that may be called different
LEVEL = 0.05


@dataclass(frozen=True)
class Filled:
    """Scores in which every run counts.

    Attributes:
        values: arm -> a finite score a replicate; nan only where no arm has a finite one in any replicate.
        diverged: arm -> replicates in which its own score was not finite.
    """

    values: dict[str, list[float]]
    diverged: dict[str, int]


def fill_diverged(scores: Mapping[str, Sequence[float]], higher: bool, bound: float | None = None) -> Filled:
    """Give diverged runs a score: the worst there is.

    A run that diverged counts as ``bound``, the worst value that the score can take; of a score without a bound, as the
    worst finite value of any arm in its replicate, or in all replicates where none of its own is finite. Leaving it out
    would reward arms that diverge.

    Args:
        scores: arm -> a score a replicate, not finite where the run diverged.
        higher: whether more is better.
        bound: the worst value that the score can take; None if there is no such.

    >>> fill_diverged({"a": [1.0, 2.0], "b": [math.nan, 3.0]}, higher=False).values
    {'a': [1.0, 2.0], 'b': [1.0, 3.0]}
    """
    worst = min if higher else max
    anywhere = [v for row in scores.values() for v in row if math.isfinite(v)]

    def replacement(replicate: int) -> float:
        if bound is not None:
            return bound
        found = [row[replicate] for row in scores.values() if math.isfinite(row[replicate])] or anywhere
        return worst(found, default=math.nan)

    values = {
        arm: [v if math.isfinite(v) else replacement(i) for i, v in enumerate(row)] for arm, row in scores.items()
    }
    diverged = {arm: sum(not math.isfinite(v) for v in row) for arm, row in scores.items()}
    return Filled(values, diverged)


def paired_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired t-test that the mean difference is 0.

    Differences that are all the same leave t without a scale; the sign test's 2^(1-n) stands in for it, and 1 where
    they are all 0. One replicate alone gives 1.

    >>> round(paired_test([1.0, 2.0, 3.0, 2.0]), 4)
    0.0163
    """
    count, mean = len(differences), statistics.fmean(differences)
    if count < 2 or not math.isfinite(mean):
        return 1.0
    spread = statistics.stdev(differences)
    if spread <= 1e-12 * max(abs(d) for d in differences) or spread == 0:
        return 1.0 if mean == 0 else 2.0 ** (1 - count)
    from scipy.special import stdtr  # half a second that only a comparison needs

    return float(2 * stdtr(count - 1, -abs(mean) / (spread / math.sqrt(count))))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p-values adjusted for how many there are (Holm 1979): at most a share ``LEVEL`` of families errs.

    The k-th smallest of m is multiplied by m - k + 1, and none is below one before it.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    ordered = sorted(p, key=p.__getitem__)
    adjusted: dict[str, float] = {}
    running = 0.0
    for rank, name in enumerate(ordered):
        running = max(running, min(1.0, p[name] * (len(ordered) - rank)))
        adjusted[name] = running
    return {name: adjusted[name] for name in p}


@dataclass(frozen=True)
class Contrast:
    """One arm against the first.

    Attributes:
        arm: its name.
        difference: of the means, arm minus first, with a 95% t-interval over paired replicates.
        p: of the paired t-test.
        p_holm: the same, adjusted for the number of arms.
        verdict: ``better``, ``worse``, or ``undecided`` where ``p_holm`` is above 5%.
    """

    arm: str
    difference: Interval
    p: float
    p_holm: float
    verdict: str


def contrasts(values: Mapping[str, Sequence[float]], higher: bool) -> list[Contrast]:
    """Compare every arm with the first, many to one.

    Args:
        values: arm -> a score a replicate, with diverged runs filled in; the first arm is the reference.
        higher: whether more is better.
    """
    first, *others = values
    differences = {arm: [a - b for a, b in zip(values[arm], values[first], strict=True)] for arm in others}
    p = {arm: paired_test(d) for arm, d in differences.items()}
    adjusted = holm(p)
    found = []
    for arm in others:
        difference = interval(differences[arm])
        verdict = "undecided"
        if adjusted[arm] <= LEVEL:
            verdict = "better" if (difference.mean > 0) == higher else "worse"
        found.append(Contrast(arm, difference, p[arm], adjusted[arm], verdict))
    return found


def ranking(values: Mapping[str, Sequence[float]], higher: bool) -> list[str]:
    """Return the arms from the best mean to the worst; arms of equal means stay in order."""
    means = {arm: statistics.fmean(row) for arm, row in values.items()}
    sign = -1 if higher else 1
    return sorted(means, key=lambda arm: sign * means[arm] if math.isfinite(means[arm]) else math.inf)
