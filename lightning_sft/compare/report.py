"""What a comparison has found: numbers for programs, a table and one sentence for people."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.keys import Score, columns, score_of
from lightning_sft.compare.plan import Plan, Results
from lightning_sft.compare.result import RunResult
from lightning_sft.compare.statistics import Contrast, contrasts, fill_diverged, ranking
from lightning_sft.errors import UserError
from lightning_sft.sweep.intervals import Interval, interval

#: version of the JSON; it rises when a key changes its meaning or goes
FORMAT = 1


@dataclass(frozen=True)
class Reading:
    """One log key of one arm.

    Attributes:
        values: a number a replicate, runs without one filled in by the worst.
        mean: over the replicates, with its 95% t-interval.
        against_first: the paired difference from the first arm; None for the first arm itself.
    """

    values: list[float]
    mean: Interval
    against_first: Contrast | None


@dataclass(frozen=True)
class ArmReport:
    """One arm.

    Attributes:
        name: of the arm.
        rate: its own peak learning rate; None is that of its configuration.
        at_edge: ``low`` or ``high`` where that is an end of a grid that may not grow any more, else None.
        search: (rate, score) of every trial of its search; None where the run diverged or failed.
        diverged: judged runs that diverged.
        failed: judged runs that failed.
        error: why, of the first that failed.
        readings: by log key.
        seconds_to_reach: training seconds until its validation was as good as the first arm's best, a replicate each;
            None where it never was.
        tokens_to_reach: likewise, supervised tokens.
    """

    name: str
    rate: float | None
    at_edge: str | None
    search: list[tuple[float, float | None]]
    diverged: int
    failed: int
    error: str | None
    readings: dict[str, Reading]
    seconds_to_reach: list[float | None]
    tokens_to_reach: list[int | None]


@dataclass(frozen=True)
class Report:
    """What a comparison has found.

    Attributes:
        name: of the comparison.
        digest: of its design.
        replicates: that were judged.
        score: the log key that selected rates and is judged.
        start: readings before the first step, means over arms and replicates; not ``val/loss``, which is of another
            objective in each arm.
        arms: in the order given; the first is what the others are compared with.
        left_out: arm -> why, of arms that failed in every run.
        wall_seconds: of all runs together.
        notes: what a reader has to know, in sentences.
        replicates_digests: a digest of the judged rows of each replicate.
        replicate: what differs from replicate to replicate, in words.
        judged_rows: how many rows each replicate is judged by; empty if unknown.
        format: version of this record.
    """

    name: str
    digest: str
    replicates: int
    score: Score
    start: dict[str, float]
    arms: list[ArmReport]
    left_out: dict[str, str]
    wall_seconds: float
    notes: list[str] = field(default_factory=list)
    replicates_digests: list[str] = field(default_factory=list)
    replicate: str = "seed, training rows and judged rows drawn afresh"
    format: int = FORMAT
    judged_rows: list[int] = field(default_factory=list)

    def arm(self, name: str) -> ArmReport:
        """Return an arm by its name."""
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def ranking(self) -> list[str]:
        """Names of the arms from the best mean score to the worst."""
        return ranking({a.name: a.readings[self.score.key].values for a in self.arms}, self.score.higher)

    @property
    def keys(self) -> list[str]:
        """Log keys of the table's columns."""
        return columns((key for arm in self.arms for key in arm.readings), self.score.key)


def make_report(design: Design, plan: Plan, results: Results, notes: Sequence[str] = ()) -> Report:
    """Return what the finished runs of a comparison say.

    Args:
        design: of the comparison.
        plan: that has nothing left to run.
        results: digest of a run -> what it has given.
        notes: further sentences for its reader.

    Raises:
        UserError: the first arm failed in every run, so that there is nothing to compare with.
    """
    first = design.arms[0].name
    runs = {arm: _judged(design, results, arm, rate) for arm, rate in plan.rates.items()}
    runs = {arm: own for arm, own in runs.items() if any(r.outcome != "failed" for r in own)}
    failed = dict(plan.failed)
    for arm in plan.rates:
        if arm not in runs:
            failed[arm] = str(_judged(design, results, arm, plan.rates[arm])[0].error)
    if first not in runs:
        raise UserError(
            f"The first arm, {first}, failed in every run, so there is nothing to compare with: {failed[first]}"
        )
    readings = _readings(runs, plan.score)
    reached = _reached(runs, plan.score)
    arms = [
        ArmReport(
            name=arm,
            rate=plan.rates[arm],
            at_edge=plan.search.at_edge.get(arm),
            search=_search(design, results, plan, arm),
            diverged=sum(r.outcome == "diverged" for r in own),
            failed=sum(r.outcome == "failed" for r in own),
            error=next((r.error for r in own if r.outcome == "failed"), None),
            readings=readings[arm],
            seconds_to_reach=[None if p is None else p[0] for p in reached[arm]],
            tokens_to_reach=[None if p is None else p[1] for p in reached[arm]],
        )
        for arm, own in runs.items()
    ]
    starts = [r.start for own in runs.values() for r in own if r.start]
    keys = {key for start in starts for key in start if not key.endswith("/loss")}
    start = {key: statistics.fmean(s[key] for s in starts if key in s) for key in sorted(keys)}
    mine = {design.digest_of(spec) for spec in _specs(design, plan)}
    wall = sum(result.wall_seconds for digest, result in results.items() if digest in mine)
    rows = [r.rows.get("val", "") for r in runs[first]]
    counts = [r.judged_rows for r in runs[first] if r.judged_rows is not None]
    return Report(
        name=design.name,
        digest=design.digest,
        replicates=design.replicates,
        score=plan.score,
        start=start,
        arms=arms,
        left_out=failed,
        wall_seconds=wall,
        notes=list(notes),
        replicates_digests=rows,
        judged_rows=counts,
    )


def _specs(design: Design, plan: Plan) -> list[RunSpec]:
    """Return every run of the comparison."""
    found = [RunSpec("judged", i, arm, rate) for arm, rate in plan.rates.items() for i in range(design.replicates)]
    for arm, rates in plan.search.tried.items():
        found += [RunSpec("search", i, arm, rate) for rate in rates for i in range(design.search_replicates)]
    return found


def _judged(design: Design, results: Results, arm: str, rate: float | None) -> list[RunResult]:
    specs = (RunSpec("judged", i, arm, rate) for i in range(design.replicates))
    return [results[design.digest_of(spec)] for spec in specs]


def _readings(runs: Mapping[str, Sequence[RunResult]], score: Score) -> dict[str, dict[str, Reading]]:
    """Return every log key of every arm; keys that one of its finished runs lacks are left out for it."""
    keys = sorted({key for own in runs.values() for r in own for key in r.readings} | {score.key})
    values: dict[str, dict[str, list[float]]] = {}
    for key in keys:
        has = {arm: rs for arm, rs in runs.items() if _has(rs, key) or key == score.key}
        values[key] = {arm: [r.score(key) for r in rs] for arm, rs in has.items()}
    return read_all(values, score)


def read_all(values: Mapping[str, Mapping[str, Sequence[float]]], score: Score) -> dict[str, dict[str, Reading]]:
    """Return the statistics of every arm and log key.

    Args:
        values: log key -> arm -> a number a replicate, nan where the run diverged or failed; the first arm first.
        score: of the key that is judged, which may say its direction.
    """
    first = next(iter(values[score.key]))
    table: dict[str, dict[str, Reading]] = {arm: {} for arm in values[score.key]}
    for key, own in values.items():
        one = score if key == score.key else score_of(key)
        filled = fill_diverged(own, one.higher, one.bound).values
        known = {c.arm: c for c in contrasts(filled, one.higher)} if first in filled else {}
        for arm, numbers in filled.items():
            table[arm][key] = Reading(numbers, interval(numbers), known.get(arm))
    return table


def _has(results: Sequence[RunResult], key: str) -> bool:
    """Return whether all finished runs of an arm have read a key: what is missing otherwise is not the worst."""
    values = [r.score(key) for r in results if r.outcome == "finished"]
    return bool(values) and all(map(math.isfinite, values))


def _reached(runs: Mapping[str, Sequence[RunResult]], score: Score) -> dict[str, list[tuple[float, int] | None]]:
    """Return training seconds and tokens until each run was as good as the first arm's best in its replicate."""
    first = next(iter(runs.values()))
    sign = 1 if score.higher else -1
    found: dict[str, list[tuple[float, int] | None]] = {}
    for arm, own in runs.items():
        found[arm] = []
        for target, result in zip(first, own, strict=True):
            seen = [sign * p.values[score.key] for p in target.curve if _finite(p.values, score) and p.step]
            goal = max(seen, default=math.nan)
            times = [
                (p.seconds, p.tokens)
                for p in result.curve
                if p.step and _finite(p.values, score) and sign * p.values[score.key] >= goal
            ]
            found[arm].append(times[0] if times else None)
    return found


def _finite(values: Mapping[str, float], score: Score) -> bool:
    return math.isfinite(values.get(score.key, math.nan))


def _search(design: Design, results: Results, plan: Plan, arm: str) -> list[tuple[float, float | None]]:
    table = []
    for rate in sorted(plan.search.tried.get(arm, [])):
        specs = (RunSpec("search", i, arm, rate) for i in range(design.search_replicates))
        values = [results[design.digest_of(spec)].score(plan.score.key) for spec in specs]
        mean = statistics.fmean(values)
        table.append((rate, mean if math.isfinite(mean) else None))
    return table
