"""One worker at work: plan, claim, run, keep, until nothing is left."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.ledger import Ledger
from lightning_sft.compare.plan import EXACT, Plan, make_plan
from lightning_sft.compare.result import RunResult
from lightning_sft.errors import UserError
from lightning_sft.units import duration, plural

Runner = Callable[[RunSpec], RunResult]


def work(design: Design, ledger: Ledger, run: Runner, say: Callable[[str], None]) -> Plan:
    """Run what is missing of a comparison; return where it stands when nothing is.

    Args:
        design: of the comparison.
        ledger: of its runs.
        run: runs one of them.
        say: called with each line about how far it is.

    Raises:
        UserError: its runs do not read what they are judged by.
    """
    began, before = time.monotonic(), ledger.results()
    first = make_plan(design, before)
    if first.jobs:
        say(opening(design, first))
    judged_by = first.score.key
    while True:
        results = ledger.results()
        plan = make_plan(design, results)
        if not plan.jobs:
            return plan
        job = ledger.claim(plan.jobs)
        if job is None:
            ledger.wait()
            continue
        results = ledger.results()  # others may have finished some of it since
        try:
            for spec in job.runs:
                if design.digest_of(spec) in results:
                    continue
                result = run(spec)
                ledger.keep(result)
                results = ledger.results()
                now = make_plan(design, results)
                require_key(now, result)
                fresh = [r for digest, r in results.items() if digest not in before]
                if judged_by == EXACT and now.score.key != EXACT:
                    say(f"No run so far got an answer exactly right: {now.score.words} decides from here on.")
                judged_by = now.score.key
                pace = sum(r.wall_seconds for r in fresh) / max(time.monotonic() - began, 1e-3)
                say(progress_line(design, spec, result, now, time_left(now, fresh, pace)))
        except BaseException:
            ledger.leave(job)
            raise
        ledger.done(job)


def require_key(plan: Plan, result: RunResult) -> None:
    """Raise if a run has finished without reading what it is judged by.

    Raises:
        UserError: names the keys that it has read.
    """
    if result.outcome == "finished" and plan.score.key not in result.readings:
        raise UserError(
            f"The comparison is judged by {plan.score.key}, which its runs do not log. They log: "
            f"{', '.join(sorted(result.readings)) or 'nothing, since they are never validated'}. Give one of these as "
            "--select."
        )


def opening(design: Design, plan: Plan) -> str:
    """Return a line about what is going to be run."""
    search = design.search
    what = [f"{len(design.arms)} arms"]
    if search.points:
        grid = f"{search.points} to {search.points + 2 * search.grow}" if search.grow else f"{search.points}"
        refined = f" and {2 * search.refine} beside the best" if search.refine else ""
        what.append(f"{grid} learning rates each{refined}, then {design.replicates} replicates at each arm's own rate")
    else:
        what.append(f"{design.replicates} replicates at the rates of the configuration")
    done = f"; {plan.finished} done" if plan.finished else ""
    more = " or more" if search.points and search.grow else ""
    return f"{design.name}: {', '.join(what)}: {plan.expected} runs{more}{done}."


def time_left(plan: Plan, finished: Sequence[RunResult], workers: float) -> float:
    """Return the seconds that a comparison still takes, judged runs and runs of the search taken apart.

    Args:
        plan: where it stands.
        finished: runs to go by.
        workers: how many are at work, a fraction where one waits at times.
    """
    mean = {k: [r.wall_seconds for r in finished if r.key.startswith(k)] for k in ("search", "judged")}
    known = [seconds for own in mean.values() for seconds in own]
    each = {k: statistics.fmean(own or known) for k, own in mean.items()} if known else {}
    return sum(count * each.get(kind, 0.0) for kind, count in plan.left.items()) / max(workers, 1.0)


def progress_line(design: Design, spec: RunSpec, result: RunResult, plan: Plan, left: float) -> str:
    """Return a line about a finished run: what it gave, how far the comparison is, and the seconds that are left."""
    reading = result.readings.get(plan.score.key)
    gave = result.outcome if reading is None else f"{plan.score.words} {plan.score.show(reading)}"
    if reading is not None and result.judged_rows is not None:
        gave += f" over {plural(result.judged_rows, 'row')}"
    error = f" ({result.error})" if result.error else ""
    end = f"; about {duration(left)} left" if plan.jobs else ""
    return f"[{plan.finished}/{plan.expected}] {label(design, spec)}: {gave}{error}{end}"


def label(design: Design, spec: RunSpec) -> str:
    """Return a run's name in lines about it."""
    if spec.kind == "judged":
        return f"replicate {spec.replicate + 1} of {design.replicates}: {spec.arm}"
    several = f", search replicate {spec.replicate + 1}" if design.search_replicates > 1 else ""
    return f"search: {spec.arm} at {spec.rate:.3g}{several}"
