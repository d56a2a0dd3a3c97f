"""Runs the study and writes its page: ``python -m studies.continuum --help``."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.errors import UserError
from lightning_sft.files import cache_root
from studies.cells import read_cells
from studies.continuum.design import REGISTERED, SCRIPTS, STAGES, STUDY, Stage, plain
from studies.registration import FILE, Registration, registered, write_registration

ROOT = Path(__file__).resolve().parents[2]
WHAT = """What to do:
  run       all that is missing and may run now, then the page (the default)
  pilot     the pilot alone, then the page
  register  write the file that registers hypotheses, outcome, decision rule and scripts; then commit it alone
  stage     one stage (--stage NAME), then the page
  small     run one cell that is there once more, compare, rebuild the page; within 30 minutes on two cores
  page      rebuild the page from the cells
  status    say what is there and how long the rest takes"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the program."""
    made = argparse.ArgumentParser(
        "python -m studies.continuum", description=WHAT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = ("run", "pilot", "register", "stage", "small", "page", "status")
    made.add_argument("what", nargs="?", default="run", choices=verbs)
    made.add_argument("--stage", choices=list(STAGES), help="of what: stage")
    made.add_argument("--cells", type=Path, default=ROOT / "docs/studies/data" / STUDY, help="folder of cells")
    made.add_argument("--work", type=Path, default=cache_root() / "studies" / STUDY, help="checkpoints, runs under way")
    made.add_argument("--page", type=Path, default=ROOT / "docs/studies/continuum.md", help="file of the page")
    made.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each (2)")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program; what a user can mend is printed, with status 2."""
    asked = parser().parse_args(arguments)
    try:
        _do(asked)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def _do(asked: argparse.Namespace) -> None:
    file = asked.cells / FILE
    if asked.what == "register":
        write_registration(file, {**REGISTERED, "design": plain()}, ROOT, SCRIPTS)
        print(f"Written: {file}. Commit it alone. That commit must reach main as it is: no rebase, squash or amend.")
        return
    registration = registered(file, ROOT)
    if asked.what == "status":
        print(status(asked.cells, registration))
        return
    if asked.what == "small":
        from studies.continuum.small import run_small

        run_small(ROOT, asked.cells, asked.work / "small")
    elif asked.what != "page":
        _run(asked, registration)
    _page(asked, registration)


def _run(asked: argparse.Namespace, registration: Registration | None) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    from studies.continuum.runs import Study

    study = Study(ROOT, asked.cells, asked.work, workers=asked.workers)
    if asked.what == "stage" and not asked.stage:
        raise UserError(f"--stage names no stage. Allowed: {', '.join(STAGES)}.")
    chosen = {"run": list(STAGES), "pilot": ["pilot"], "stage": [asked.stage]}[asked.what]
    for stage in (STAGES[name] for name in chosen):
        if stage.registered and registration is None and asked.what == "run":
            print(f"{stage.name}: waits for the registering commit; see studies/README.md")
            continue
        if stage.registered and registration is not None and (changed := registration.changed(ROOT)):
            raise UserError(
                f"{', '.join(changed)} changed after they were registered, so {stage.name!r} cannot run with them. "
                f"Check out the commit {registration.commit}, or undo the change."
            )
        study.run_stage(stage, None if registration is None else registration.commit)


def _page(asked: argparse.Namespace, registration: Registration | None) -> None:
    from studies.continuum.page import write_page

    figures = asked.page.parent.parent / "assets" / "studies" / STUDY
    write_page(asked.page, figures, read_cells(asked.cells), registration, ROOT)
    print(f"Written: {asked.page}")


def least_runs(stage: Stage) -> int:
    """Return how many runs a stage has at least: the first grid, refined, and the judged ones; a grid may grow."""
    trials = (stage.search.points + 2 * stage.search.refine) * stage.search_replicates
    return len(stage.blocks) * len(stage.arms) * (trials + stage.replicates)


def status(folder: Path, registration: Registration | None) -> str:
    """Return what is there, what is missing, and how long that takes at the pace of the cells that are there."""
    cells = read_cells(folder)
    seconds = [cell.run.wall_seconds for cell in cells if cell.kind != "level"]
    pace = statistics.median(seconds) if seconds else None
    lines = [f"registered: {'nothing' if registration is None else registration.commit}"]
    for name, stage in STAGES.items():
        mine = [cell for cell in cells if cell.stage == name]
        left = max(least_runs(stage) - len(mine), 0)
        time = "" if pace is None else f", {left * pace / 2 / 3600:.1f} hours for the rest, two at a time"
        lines.append(f"{name}: {len(mine)} cells, at least {least_runs(stage)} in all{time}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
