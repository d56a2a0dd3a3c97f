"""What the verbs that compare say on the way, and what they write at the end."""

from __future__ import annotations

import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lightning_sft.cli.compare.output import write, write_best
from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.plan import Plan, Results, make_plan
from lightning_sft.compare.report import ArmReport, Report, make_report
from lightning_sft.compare.words import contrast_of, narrow, sentence, width_note
from lightning_sft.report.plain_text import shown
from lightning_sft.training.signals import WATCH, Stopped
from lightning_sft.units import duration

#: settings of a fit of the best arm, in the comparison's folder
BEST = "best.yaml"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from introducing itself before each of many runs; what runs later in the process is heard."""
    import lightning.pytorch  # noqa: F401  # sets the level that is raised here, and would set it again after that

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    # of each run, where nothing but the last readings is kept
    warnings.filterwarnings("ignore", "The number of training batches .* is smaller than the logging interval")
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def told_when_stopped(design: Design, results: Callable[[], Results]) -> Iterator[None]:
    """Let the verb say, in place of the run under way, how much of a comparison is done where a signal ends it.

    Args:
        design: of the comparison.
        results: gives what its finished runs have given.
    """
    WATCH.speaks = False
    try:
        yield
    except Stopped as stopped:
        plan = make_plan(design, results())
        stopped.done = f"{plan.finished} of {plan.expected} runs of {design.name} done"
        raise
    finally:
        WATCH.speaks = True


def say(line: str) -> None:
    """Print a line about progress, beside what a program may read from the output."""
    print(line, file=sys.stderr, flush=True)


def finish(design: Design, plan: Plan, results: Results, folder: Path, wish: float | None) -> Report:
    """Write and print what a comparison has found."""
    favours = design.select == "auto" and plan.score.key == "val/nll"
    notes = [_favours_nll(searched=bool(design.search.points))] if favours else []
    report = make_report(design, plan, results, notes)
    width = width_note(report, wish)
    report = replace(report, notes=[*report.notes, *([width] if width else [])])
    write(report, folder)
    text = f"{narrow(report)}\n\n{sentence(report)}"
    print(f"\n{shown(text)}\n\nWritten: {folder}/report.json, report.md, forest.png")
    print("\n".join(_next(design, plan, results, report, folder)))
    return report


def _next(design: Design, plan: Plan, results: Results, report: Report, folder: Path) -> Iterator[str]:
    """Yield what one types after a comparison."""
    yield "\nNext       See the arms in TensorBoard, under HParams:"
    yield f"             {shlex.join(['tensorboard', '--logdir', str(folder / 'tensorboard')])}"
    best = write_best(design, report, folder / BEST)
    if best is not None:
        rate = "" if best.rate is None else f", at its rate of {best.rate:.3g}"
        ahead = "was best here" if _is_best(report, best) else "was ahead here, though not beyond chance"
        yield f"           Train once with {best.name}, which {ahead}{rate}{_cost(design, plan, results, best)}:"
        yield f"             {shlex.join(['lightning', 'fit', str(folder / BEST)])}"
        return
    arm = report.arm(report.ranking[0])
    yield f"           {BEST} is not written: parameter_rules give groups of parameters rates of their own, and the"
    yield f"           comparison scaled all of them by one factor. To train once with {arm.name}, which was best here,"
    yield f"           multiply every lr of the settings by one factor, so that the first group's is {arm.rate:.3g}."


def _is_best(report: Report, best: ArmReport) -> bool:
    """Return whether the best arm is told apart: from the first, or, where it is the first, from all others."""
    first, *others = report.arms
    if best.name == first.name:
        return all(contrast_of(arm, report.score.key).verdict == "worse" for arm in others)
    return contrast_of(best, report.score.key).verdict == "better"


def _cost(design: Design, plan: Plan, results: Results, best: ArmReport) -> str:
    """Return what one run of the best arm took here; empty where none has finished."""
    specs = [RunSpec("judged", i, best.name, plan.rates[best.name]) for i in range(design.replicates)]
    found = [results[digest] for digest in map(design.digest_of, specs) if digest in results]
    if not found:
        return ""
    return f" (one run like it took {duration(sum(r.wall_seconds for r in found) / len(found))} here)"


def _favours_nll(*, searched: bool) -> str:
    what = "Rates were selected and arms are judged" if searched else "Arms are judged"
    return (
        f"{what} by val/nll, NLL's own objective, which favours NLL: answers are long, or no run gets one right. Give "
        "--select to decide by what you want from the model."
    )
