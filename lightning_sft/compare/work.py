"""One worker at work: plan, claim, run, keep, until nothing is left."""

from __future__ import annotations

import time
from collections.abc import Callable

from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.ledger import Ledger
from lightning_sft.compare.plan import Plan, make_plan
from lightning_sft.compare.result import RunResult
from lightning_sft.errors import UserError

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
    began, before = time.monotonic(), None
    while True:
        results = ledger.results()
        plan = make_plan(design, results)
        before = plan.finished if before is None else before
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
                now = make_plan(design, ledger.results())
                require_key(now, result)
                say(progress_line(result, now, time.monotonic() - began, now.finished - before))
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


def progress_line(result: RunResult, plan: Plan, seconds: float, fresh: int) -> str:
    """Return a line about a finished run: what it gave, how far the comparison is, and the time left at this pace.

    Args:
        result: of the run.
        plan: where the comparison stands with it.
        seconds: that this worker has been at work.
        fresh: runs that all workers have finished meanwhile.
    """
    reading = result.readings.get(plan.score.key)
    gave = result.outcome if reading is None else f"{plan.score.words} {plan.score.show(reading)}"
    left = max(plan.expected - plan.finished, 0) * seconds / max(fresh, 1)
    error = f" ({result.error})" if result.error else ""
    return f"[{plan.finished}/{plan.expected}] {result.key}: {gave}{error}; {duration(left)} left"


def duration(seconds: float) -> str:
    """Return a time span for people.

    >>> duration(42), duration(2460), duration(9000)
    ('42 s', '41 minutes', '2.5 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
