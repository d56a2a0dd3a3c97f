"""What to run next, as a pure function of a design and of what has been found: the same on every worker."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from lightning_sft.compare.design import Design, Kind, RunSpec
from lightning_sft.compare.keys import Score, score_of
from lightning_sft.compare.rates import Progress, search
from lightning_sft.compare.result import RunResult
from lightning_sft.sweep.search import geometric_grid

#: answers of up to so many tokens are judged by exact match unless asked otherwise
SHORT = 24
EXACT = "val/exact_match"

Results = Mapping[str, RunResult]


@dataclass(frozen=True)
class Job:
    """What one worker takes at once.

    Attributes:
        key: its name within the comparison.
        runs: one run of a search; or the runs of all arms in one judged replicate, so that pairs share a machine.
    """

    key: str
    runs: tuple[RunSpec, ...]


@dataclass(frozen=True)
class Plan:
    """Where a comparison stands.

    Attributes:
        jobs: to run now, in any order; none when all is done.
        score: what rates are selected by.
        rates: arm -> its own rate, once they are found; None is that of its configuration.
        search: of rates, as it stands; empty without one.
        failed: arm -> why, of arms that failed in every run so far; they are left out.
        left: runs that are left of each kind, as far as can be said now.
        finished: runs of this comparison that are done.
    """

    jobs: tuple[Job, ...]
    score: Score
    rates: dict[str, float | None]
    search: Progress
    failed: dict[str, str]
    left: dict[Kind, int]
    finished: int

    @property
    def expected(self) -> int:
        """Runs in all, as far as can be said now."""
        return self.finished + sum(self.left.values())


def make_plan(design: Design, results: Results) -> Plan:
    """Say what to run next.

    Args:
        design: of the comparison.
        results: digest of a run -> what it has given.
    """
    score = decide_score(design, results)
    names = [arm.name for arm in design.arms]
    failed = _failed(design, results, names)
    left = [name for name in names if name not in failed]
    rates: dict[str, float | None] = dict.fromkeys(left)
    progress, searched = Progress(), 0
    if design.search.points:
        progress, found = _searched(design, results, score, left)
        searched = sum(map(len, found.values())) * design.search_replicates
        rates = {**progress.best}
    if progress.wanted:
        runs = [
            RunSpec("search", replicate, arm, rate)
            for arm, wanted in progress.wanted.items()
            for rate in wanted
            for replicate in range(design.search_replicates)
        ]
        missing = [run for run in runs if design.digest_of(run) not in results]
        trials = len(progress.grid) + 2 * design.search.refine
        done = searched + len(runs) - len(missing)
        more = max(len(left) * trials * design.search_replicates - done, len(missing))
        jobs = tuple(Job(run.key, (run,)) for run in missing)
        to_do: dict[Kind, int] = {"search": more, "judged": len(left) * design.replicates}
        return Plan(jobs, score, {}, progress, failed, to_do, done)
    judged, done = [], 0
    for replicate in range(design.replicates):
        specs = tuple(RunSpec("judged", replicate, name, rates[name]) for name in left)
        missing = [spec for spec in specs if design.digest_of(spec) not in results]
        done += len(specs) - len(missing)
        judged += [Job(f"judged {replicate}", specs)] if missing else []
    rest: dict[Kind, int] = {"search": 0, "judged": len(left) * design.replicates - done}
    return Plan(tuple(judged), score, rates, progress, failed, rest, searched + done)


def decide_score(design: Design, results: Results) -> Score:
    """Return what rates are selected by, and what stands first in the table.

    Under ``auto``, exact match where the first arm's first runs have it, a judged answer has at most `SHORT` tokens,
    and at least one of those runs gets an answer right; else the validation NLL.
    """
    if design.select != "auto":
        return score_of(design.select)
    first = design.arms[0].name
    if design.search.points:
        specs = [RunSpec("search", 0, first, rate) for rate in _grid(design)]
    else:
        specs = [RunSpec("judged", i, first, None) for i in range(design.replicates)]
    known = [results[d] for d in map(design.digest_of, specs) if d in results]
    short = any(r.answer_tokens is not None and r.answer_tokens <= SHORT for r in known)
    matches = [r.readings[EXACT] for r in known if EXACT in r.readings]
    useful = any(matches) or (bool(matches) and len(known) < len(specs))  # not all of them have run yet
    return score_of(EXACT if short and useful else "val/nll")


def _grid(design: Design) -> list[float]:
    setting = design.search
    return geometric_grid(setting.low, setting.high, setting.points)


def _searched(
    design: Design, results: Results, score: Score, arms: list[str]
) -> tuple[Progress, dict[str, dict[float, tuple[float, ...]]]]:
    """Return where the search stands, and what it has found at rates whose replicates are all done."""
    found: dict[str, dict[float, tuple[float, ...]]] = {arm: {} for arm in arms}
    while True:
        progress = search(design.search, arms, found)
        news = False
        for arm, wanted in progress.wanted.items():
            for rate in wanted:
                known = _runs(design, results, arm, rate)
                if None not in known:
                    found[arm][rate] = _outcome([r for r in known if r is not None], score)
                    news = True
        if not news:
            return progress, found


def _runs(design: Design, results: Results, arm: str, rate: float) -> list[RunResult | None]:
    specs = [RunSpec("search", i, arm, rate) for i in range(design.search_replicates)]
    return [results.get(design.digest_of(spec)) for spec in specs]


def _outcome(results: list[RunResult], score: Score) -> tuple[float, ...]:
    """Return what a search maximises: the score, then the NLL where scores are equal; the worst if any run diverged."""
    values = [result.score(score.key) for result in results]
    if not all(map(math.isfinite, values)):
        return (-math.inf, -math.inf)
    nll = statistics.fmean(result.readings.get("val/nll", 0.0) for result in results)
    return ((1 if score.higher else -1) * statistics.fmean(values), -nll if math.isfinite(nll) else -math.inf)


def _failed(design: Design, results: Results, arms: list[str]) -> dict[str, str]:
    """Return the arms whose every run of the first grid failed, with the first error."""
    failed = {}
    for arm in arms if design.search.points else []:
        known = [result for rate in _grid(design) for result in _runs(design, results, arm, rate)]
        errors = [result.error for result in known if result is not None and result.outcome == "failed"]
        if len(errors) == len(known):
            failed[arm] = str(errors[0])
    return failed
