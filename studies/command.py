"""The program of a study: runs what is missing, registers, and writes the page."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_sft.errors import UserError
from lightning_sft.files import cache_root
from studies.cells import Cell, read_cells
from studies.registration import FILE, Registration, registered, write_registration
from studies.study import AnyStage, Study

ROOT = Path(__file__).resolve().parents[1]
WHAT = """What to do:
  run       all that is missing and may run now, then the page (the default)
  pilot     the pilot alone, then the page
  register  write the file that registers hypotheses, outcome, decision rule and scripts; then commit it alone
  stage     one stage (--stage NAME), then the page
  small     run one cell that is there once more, compare, rebuild the page; within 30 minutes on two cores
  page      rebuild the page from the cells
  status    say what is there and how long the rest takes"""

#: page, figures, cells, what is registered, root of the checkout
WritePage = Callable[[Path, Path, Sequence[Cell], "Registration | None", Path], None]


@dataclass(frozen=True)
class Program:
    """What one study's program consists of.

    Attributes:
        name: of the study.
        stages: by name, in the order that they run in.
        study: its class.
        small: runs the named cell again: root, cells, folder of its own.
        write_page: see `WritePage`.
        registered: what is registered: hypotheses, outcome, rules, design.
        scripts: paths of the code that is registered.
    """

    name: str
    stages: Mapping[str, AnyStage]
    study: type[Study]
    small: Callable[[Path, Path, Path], object]
    write_page: WritePage
    registered: Mapping[str, Any]
    scripts: Sequence[str]

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of the program."""
        made = argparse.ArgumentParser(
            f"python -m studies.{self.name}", description=WHAT, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        verbs = ("run", "pilot", "register", "stage", "small", "page", "status")
        work = cache_root() / "studies" / self.name
        made.add_argument("what", nargs="?", default="run", choices=verbs)
        made.add_argument("--stage", choices=list(self.stages), help="of what: stage")
        made.add_argument("--block", help="of what: stage, this block alone; its name is in the page's tables")
        made.add_argument("--cells", type=Path, default=ROOT / "docs/studies/data" / self.name, help="folder of cells")
        made.add_argument("--work", type=Path, default=work, help="checkpoints, runs under way")
        made.add_argument("--page", type=Path, default=ROOT / f"docs/studies/{self.name}.md", help="file of the page")
        made.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each (2)")
        return made

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Run the program; what a user can mend is printed, with status 2."""
        asked = self.parser().parse_args(arguments)
        try:
            self._do(asked)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error

    def _do(self, asked: argparse.Namespace) -> None:
        file = asked.cells / FILE
        if asked.what == "register":
            found = {"rates found": rates_found(read_cells(asked.cells))}
            write_registration(file, {**self.registered, **found}, ROOT, self.scripts)
            print(
                f"Written: {file}. Commit it alone. That commit must reach main as it is: no rebase, squash or amend."
            )
            return
        registration = registered(file, ROOT)
        if asked.what == "status":
            print(self.status(asked.cells, registration))
            return
        if asked.what == "small":
            self.small(ROOT, asked.cells, asked.work / "small")
        elif asked.what != "page":
            self._run(asked, registration)
        self._page(asked, registration)

    def _run(self, asked: argparse.Namespace, registration: Registration | None) -> None:
        torch.set_num_threads(1)  # checkpoints are made in this process, runs in their own
        study = self.study(ROOT, asked.cells, asked.work, workers=asked.workers)
        if asked.what == "stage" and not asked.stage:
            raise UserError(f"--stage names no stage. Allowed: {', '.join(self.stages)}.")
        if asked.block and asked.what != "stage":
            raise UserError(f"--block {asked.block} belongs to one stage: stage --stage NAME --block {asked.block}")
        chosen = {"run": list(self.stages), "pilot": ["pilot"], "stage": [asked.stage]}[asked.what]
        for stage in (self.stages[name] for name in chosen):
            if stage.registered and registration is None and asked.what == "run":
                print(f"{stage.name}: waits for the registering commit; see studies/README.md")
                continue
            if stage.registered and registration is not None and (changed := registration.changed(ROOT)):
                raise UserError(
                    f"{', '.join(changed)} changed after they were registered, so {stage.name!r} cannot run with them. "
                    f"Check out the commit {registration.commit}, or undo the change."
                )
            blocks = [block for block in stage.blocks if asked.block in (None, block.name)]
            if not blocks:
                names = ", ".join(block.name for block in stage.blocks)
                raise UserError(f"--block is {asked.block!r}. Blocks of {stage.name!r}: {names}.")
            study.run_stage(stage, None if registration is None else registration.commit, blocks)

    def _page(self, asked: argparse.Namespace, registration: Registration | None) -> None:
        figures = asked.page.parent.parent / "assets" / "studies" / self.name
        self.write_page(asked.page, figures, read_cells(asked.cells), registration, ROOT)
        print(f"Written: {asked.page}")

    def status(self, folder: Path, registration: Registration | None) -> str:
        """Return what is there, what is missing, and how long that takes at the pace of the cells that are there."""
        cells = read_cells(folder)
        seconds = [cell.run.wall_seconds for cell in cells if cell.kind != "level"]
        pace = statistics.median(seconds) if seconds else None
        lines = [f"registered: {'nothing' if registration is None else registration.commit}"]
        for name, stage in self.stages.items():
            mine = [cell for cell in cells if cell.stage == name]
            other = self.stages.get(stage.rates_of)
            least = least_runs(stage, [] if other is None else [block.name for block in other.blocks])
            left = max(least - len(mine), 0)
            time = "" if pace is None else f", {left * pace / 2 / 3600:.1f} hours for the rest, two at a time"
            lines.append(f"{name}: {len(mine)} cells, at least {least} in all{time}")
        return "\n".join(lines)


def rates_found(cells: Sequence[Cell], stage: str = "pilot") -> dict[str, dict[str, float]]:
    """Return the rate that the judged runs of a stage have: block -> arm -> rate."""
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        if cell.stage == stage and cell.kind == "judged":
            found.setdefault(cell.block, {})[cell.arm] = cell.rate
    return found


def least_runs(stage: AnyStage, searched: Collection[str] = ()) -> int:
    """Return how many runs a stage has at least: the first grid, refined, and the judged ones; a grid may grow.

    Args:
        stage: of the study.
        searched: blocks of it whose rates another stage has found.
    """
    trials = (stage.search.points + 2 * stage.search.refine) * stage.search_replicates
    own = [block for block in stage.blocks if block.name not in searched]
    return len(stage.arms) * (len(own) * trials + len(stage.blocks) * stage.replicates)
