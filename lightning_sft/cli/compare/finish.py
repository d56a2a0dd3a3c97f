"""What the verbs that compare say on the way, and what they write at the end."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lightning_sft.cli.compare.output import write
from lightning_sft.compare.design import Design
from lightning_sft.compare.plan import Plan, Results
from lightning_sft.compare.report import Report, make_report
from lightning_sft.compare.words import markdown, sentence, width_note


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from introducing itself before each of many runs; what runs later in the process is heard."""
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
    print(f"\n{markdown(report)}\n\n{sentence(report)}\n\nWritten: {folder}/report.json, report.md, forest.png")
    return report


def _favours_nll(*, searched: bool) -> str:
    what = "Rates were selected and arms are judged" if searched else "Arms are judged"
    return (
        f"{what} by val/nll, NLL's own objective, which favours NLL: answers are long, or no run gets one right. Give "
        "--select to decide by what you want from the model."
    )
