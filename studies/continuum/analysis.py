"""From cells to numbers: pure functions, registered before the cells that they judge."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_sft.compare.statistics import LEVEL, holm
from studies.cells import Cell
from studies.continuum.design import CONTROLLED, FIRST, HYPOTHESES, MARGIN, SAMPLED, SCORE, SECOND, Block, Stage
from studies.findings import Finding, Runs, differences, finding, judged, scores


def _two_arms(runs: Runs, key: str = SCORE, first_key: str | None = None) -> dict[int, float]:
    return differences(runs, key, SECOND, FIRST, first_key)


@dataclass(frozen=True)
class Verdict:
    """What became of a hypothesis.

    Attributes:
        name: ``H1`` to ``H3``.
        finding: the difference that it is about.
        p_holm: adjusted over the hypotheses; None before all of them are complete.
        verdict: ``supported``, ``contradicted``, ``undecided``, or ``not complete``.
    """

    name: str
    finding: Finding
    p_holm: float | None
    verdict: str


#: hypothesis -> whether its rows are noisy, and the sign that it predicts
_PREDICTED = {"H1": (True, 1), "H2": (False, 1), "H3": (False, -1)}


def hypotheses(cells: Sequence[Cell], stage: Stage, task: str = "initials") -> list[Verdict]:
    """Return the verdicts on all three hypotheses; none is given before all their cells are there."""
    found = {}
    for name, (noisy, _) in _PREDICTED.items():
        weak = _two_arms(judged(cells, stage.name, Block(task, "weak", noisy).name))
        strong = _two_arms(judged(cells, stage.name, Block(task, "strong", noisy).name))
        values = weak if name == "H3" else {r: strong[r] - weak[r] for r in strong if r in weak}
        found[name] = finding(values, stage.replicates)
    assert set(found) == set(HYPOTHESES)
    p = {name: one.p for name, one in found.items() if one.p is not None}
    if len(p) < len(found):
        return [Verdict(name, one, None, "not complete") for name, one in found.items()]
    adjusted = holm(p)
    return [Verdict(name, one, adjusted[name], _verdict(one, adjusted[name], _PREDICTED[name][1]))
            for name, one in found.items()]  # fmt: skip


def repeated(cells: Sequence[Cell], stage: Stage, task: str = "kinds") -> Verdict:
    """Return H1 on a task of its own: one test that no other adjusts, and that adjusts none."""
    noisy, sign = _PREDICTED["H1"]
    weak = _two_arms(judged(cells, stage.name, Block(task, "weak", noisy).name))
    strong = _two_arms(judged(cells, stage.name, Block(task, "strong", noisy).name))
    one = finding({r: strong[r] - weak[r] for r in strong if r in weak}, stage.replicates)
    return Verdict("H1", one, one.p, "not complete" if one.p is None else _verdict(one, one.p, sign))


def _verdict(one: Finding, p: float, sign: int) -> str:
    assert one.difference is not None
    if p > LEVEL:
        return "undecided"
    return "supported" if one.difference.mean * sign > 0 else "contradicted"


@dataclass(frozen=True)
class BlockRow:
    """The two arms of a block, and how they differ in three readings.

    Attributes:
        block: its name.
        exact: D of exact match.
        sampled: of pass@1 at temperature 1.
        controlled: of the same, with NLL at its fitted temperature.
        means: arm -> its mean exact match, as far as its runs are there.
        diverged: arm -> runs that diverged.
    """

    block: str
    exact: Finding
    sampled: Finding
    controlled: Finding
    means: dict[str, float]
    diverged: dict[str, int]


def block_row(cells: Sequence[Cell], stage: Stage, block: Block) -> BlockRow:
    """Return what a block of two arms has given."""
    runs = judged(cells, stage.name, block.name)
    means = {arm: statistics.fmean(row.values()) for arm in stage.arms if (row := scores(runs, arm, SCORE))}
    diverged = {arm: sum(r.outcome == "diverged" for r in runs.get(arm, {}).values()) for arm in stage.arms}
    count = stage.replicates
    return BlockRow(
        block.name,
        finding(_two_arms(runs), count),
        finding(_two_arms(runs, SAMPLED), count),
        finding(_two_arms(runs, SAMPLED, CONTROLLED), count),
        means,
        diverged,
    )


# ---------------------------------------------------------------------- crossing


@dataclass(frozen=True)
class Crossing:
    """Where D changes its sign over mean p.

    Attributes:
        at: mean p at which the fitted line is 0; None where the line has no slope.
        low: end of the 95% interval; None: it has no end on that side.
        high: the other end.
        replicates: that were fitted.
    """

    at: float | None
    low: float | None
    high: float | None
    replicates: int


def crossing(places: Sequence[float], rows: Sequence[Sequence[float]]) -> Crossing | None:
    """Fit a line to D over mean p in each replicate, and return where their mean crosses 0.

    The interval is Fieller's (1954): all places at which a t-test over replicates does not find the mean line different
    from 0. It has no ends where the slope itself is not different from 0.

    Args:
        places: mean p of each level, two or more.
        rows: a replicate each: D at these levels.

    Returns:
        None below two replicates or two levels.

    >>> found = crossing([0.0, 1.0], [[-1.0, 1.1], [-1.0, 0.9], [-1.1, 1.0], [-0.9, 1.0]])
    >>> round(found.at, 3), round(found.low, 2), round(found.high, 2)
    (0.5, 0.44, 0.56)
    """
    count = len(rows)
    if count < 2 or len(places) < 2:
        return None
    centre = statistics.fmean(places)
    spread = sum((x - centre) ** 2 for x in places)
    slopes = [sum((x - centre) * d for x, d in zip(places, row, strict=True)) / spread for row in rows]
    levels = [statistics.fmean(row) - slope * centre for row, slope in zip(rows, slopes, strict=True)]
    a, b = statistics.fmean(levels), statistics.fmean(slopes)
    from scipy.special import stdtrit

    scale = float(stdtrit(count - 1, 0.975)) ** 2 / count
    both = sum((x - a) * (y - b) for x, y in zip(levels, slopes, strict=True)) / (count - 1)
    square = b * b - scale * statistics.variance(slopes)
    linear, constant = a * b - scale * both, a * a - scale * statistics.variance(levels)
    root = linear * linear - square * constant
    at = None if b == 0 else -a / b
    if square <= 0 or root < 0:
        return Crossing(at, None, None, count)
    ends = [(-linear - math.sqrt(root)) / square, (-linear + math.sqrt(root)) / square]
    return Crossing(at, ends[0], ends[1], count)


def block_crossing(cells: Sequence[Cell], stage: Stage, task: str, noisy: bool) -> Crossing | None:
    """Return the crossing over the levels of a task whose blocks are complete."""
    places, columns = [], []
    for block in stage.blocks:
        if (block.task, block.noisy) != (task, noisy):
            continue
        found, place = _two_arms(judged(cells, stage.name, block.name)), mean_p(cells, block)
        if len(found) == stage.replicates and place is not None:
            places.append(place)
            columns.append(found)
    rows = [[column[r] for column in columns] for r in (sorted(columns[0]) if columns else [])]
    return crossing(places, rows)


def mean_p(cells: Iterable[Cell], block: Block) -> float | None:
    """Return the mean p that a block's checkpoint was stopped at; None before it is made."""
    name = f"{block.task}, {block.level}"
    found = [cell.run.readings["val/mean_p"] for cell in cells if cell.kind == "level" and cell.block == name]
    return found[0] if found else None


# ---------------------------------------------------------------------- many arms, rules, costs


@dataclass(frozen=True)
class ArmRow:
    """One arm of an exploratory block against the first.

    Attributes:
        arm: its name.
        mean: its mean exact match; None before its first run.
        finding: arm minus first.
        p_holm: adjusted over the arms of the block; None before all are complete.
    """

    arm: str
    mean: float | None
    finding: Finding
    p_holm: float | None


def many_to_one(cells: Sequence[Cell], stage: Stage, block: Block) -> list[ArmRow]:
    """Return every arm of a block against the first, under Holm; of incomplete blocks nothing is tested."""
    runs = judged(cells, stage.name, block.name)
    found = {arm: finding(differences(runs, SCORE, arm, FIRST), stage.replicates) for arm in stage.arms[1:]}
    p = {arm: one.p for arm, one in found.items() if one.p is not None}
    adjusted: dict[str, float] = holm(p) if len(p) == len(found) else {}
    means = {arm: statistics.fmean(row.values()) for arm in found if (row := scores(runs, arm, SCORE))}
    return [ArmRow(arm, means.get(arm), one, adjusted.get(arm)) for arm, one in found.items()]


@dataclass(frozen=True)
class Regret:
    """A rule against always taking one objective, over unseen pairs of task and checkpoint.

    Attributes:
        rule: its name.
        constant: the objective.
        finding: exact match of the constant minus the rule's, a value a pair; larger is worse for the rule.
        passes: whether the upper end of its interval is below the margin; None before all pairs are there.
    """

    rule: str
    constant: str
    finding: Finding
    passes: bool | None


def regrets(cells: Sequence[Cell], stage: Stage, rules: Sequence[str]) -> list[Regret]:
    """Return every rule against every constant; the unit is the pair of task and checkpoint."""
    found = []
    for rule in rules:
        for constant in (FIRST, SECOND):
            values = {}
            for i, block in enumerate(stage.blocks):
                row = differences(judged(cells, stage.name, block.name), SCORE, constant, rule)
                if len(row) == stage.replicates:
                    values[i] = statistics.fmean(row.values())
            one = finding(values, len(stage.blocks))
            high = None if one.difference is None else one.difference.high
            found.append(Regret(rule, constant, one, high < MARGIN if one.complete and high is not None else None))
    return found


def tokens_to_best_of_first(runs: Runs, arm: str, first: str = FIRST) -> list[float | None]:
    """Return, by replicate, supervised tokens until an arm's curve reaches the first arm's best; None if never."""
    key = "val/curve/exact_match"
    found: list[float | None] = []
    for replicate in sorted(set(runs.get(arm, {})) & set(runs.get(first, {}))):
        best = max((p.values.get(key, -math.inf) for p in runs[first][replicate].curve), default=-math.inf)
        reached = [p.tokens for p in runs[arm][replicate].curve if p.values.get(key, -math.inf) >= best]
        found.append(reached[0] if reached and math.isfinite(best) else None)
    return found
