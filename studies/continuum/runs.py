"""Stages of the study as comparisons: checkpoints, designs, and cells of their runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from lightning_sft.cli.compare.finish import quiet
from lightning_sft.cli.compare.identity import common_facts, model_digest
from lightning_sft.cli.compare.prepare import make_design
from lightning_sft.cli.compare.trial import run_apart
from lightning_sft.cli.compare.verb import parse
from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.plan import make_plan
from lightning_sft.compare.result import RunResult
from lightning_sft.errors import UserError
from lightning_sft.models.gguf import PACKAGE_SCHEME, package_file
from studies.cells import Cell, processor, read_cells, require_one_version, write_cell
from studies.continuum import levels
from studies.continuum.design import BOTTOM, LEVELS, MODEL, SCORE, STUDY, Block, Stage, arm_words, run_settings
from studies.registration import head, seed_text
from studies.side_by_side import Results, prepare_processes, run_missing


class Study:
    """The study on this machine.

    Args:
        root: of the checkout.
        cells: folder of cells.
        work: folder of checkpoints and runs under way.
        model: that everything begins with.
        say: is told what is done.
        small: other numbers for a toy; see `design.run_settings` and `levels.settings`.
        workers: runs side by side.
    """

    def __init__(
        self,
        root: Path,
        cells: Path,
        work: Path,
        model: str = MODEL,
        say: Callable[[str], None] = print,
        small: Mapping[str, Any] | None = None,
        workers: int = 2,
    ) -> None:
        self.root, self.cells, self.work, self.model = root, cells, work, model
        self.say, self.small, self.workers = say, small, workers
        self.here = common_facts(torch.device("cpu"))
        self.commit = head(root)

    def require_model(self) -> None:
        """Raise if the package that carries the model is missing.

        Raises:
            UserError: names the package and how to install it.
        """
        if self.model.startswith(PACKAGE_SCHEME):
            package_file(self.model)

    # ------------------------------------------------------------------ checkpoints

    def checkpoint(self, task: str, level: str) -> Path:
        """Return where the checkpoint of a level is, or will be."""
        return self.work / "levels" / f"{task}, {level}"

    def ensure_level(self, task: str, level: str) -> None:
        """Make the checkpoint of a level, and of those below it, unless they are there.

        Raises:
            UserError: the one here is not the one that the level's cell tells of.
        """
        lower = [name for name in LEVELS if self._target(name) < self._target(level) and self._on_way(name, level)]
        start = self.model
        if lower:
            below = max(lower, key=self._target)
            self.ensure_level(task, below)
            start = str(self.checkpoint(task, below))
        folder = self.checkpoint(task, level)
        known = self._level_cell(task, level)
        if not folder.exists():
            self.say(f"level {task}, {level}: fine-tuning on clean rows up to mean p {self._target(level)}")
            cell = levels.make_level(task, level, start, folder, self.commit, self.small)
            if known is None:
                write_cell(self.cells, cell)
                return
        elif known is None:
            raise UserError(f"{folder} is there, and no cell tells of it. Remove the folder, and it is made again.")
        made = model_digest(str(folder), None)
        if made != known.facts["model"]:
            raise UserError(
                f"The checkpoint of {task}, {level} in {folder} is {made}, and the cells in {self.cells} stand on "
                f"{known.facts['model']}, made on {known.processor}. Runs from both would stand in one table. Copy "
                "that checkpoint here, or run the study anew with --cells and --work of other folders."
            )

    def _target(self, level: str) -> float:
        return float({**LEVELS, **(self.small or {}).get("targets", {})}[level])

    @staticmethod
    def _on_way(name: str, level: str) -> bool:
        """Return whether a level lies on the way to another: the three of the hypotheses, or the four of the rules."""
        return name.startswith("at ") == level.startswith("at ")

    def _level_cell(self, task: str, level: str) -> Cell | None:
        found = [c for c in read_cells(self.cells) if c.kind == "level" and c.block == f"{task}, {level}"]
        return found[0] if found else None

    # ------------------------------------------------------------------ stages

    def design(self, stage: Stage, block: Block, commit: str | None) -> Design:
        """Return the comparison of a block.

        Args:
            stage: of the study.
            block: of the stage.
            commit: that registers the stage; None for stages that need none.
        """
        level = self._level_cell(block.task, block.level)
        bottom = 0.0 if level is None else level.run.readings[f"p at {BOTTOM}%"]
        text = seed_text(STUDY, commit) if stage.registered and commit else seed_text(STUDY, stage.name)
        folder = self.checkpoint(block.task, block.level)
        # before it is made, a name that none has: the design is asked only for what is missing then
        settings = run_settings(stage, block, str(folder) if folder.is_dir() else "not-made-yet", self.small)
        search = stage.search
        words = [f"--config={yaml.safe_dump(settings, sort_keys=False)}", "--name", block.name, "--select", SCORE]
        words += ["--seed", text, "--replicates", str(stage.replicates), "--low", str(search.low)]
        words += ["--search_replicates", str(stage.search_replicates), "--high", str(search.high)]
        words += ["--points", str(search.points), "--refine", str(search.refine), "--grow", str(search.grow)]
        by_name = [arm_words(arm, bottom) for arm in stage.arms]
        named = [words_of[1] for words_of in by_name if words_of[0] == "--objectives"]
        words += ["--objectives", ",".join(named)]
        for words_of in by_name:
            words += words_of if words_of[0] == "--arm" else []
        return make_design(*parse(words))

    def known(self, stage: Stage, designs: Mapping[str, Design], *, extended: bool) -> Results:
        """Return what cells have given already, by block and by the digest that this machine's design gives the run.

        Args:
            stage: of the study.
            designs: by the name of their block.
            extended: whether further cells are to stand beside them, and so must have the same settings.

        Raises:
            UserError: a cell that was run with another seed, or with other settings, than the design asks for.
        """
        found: Results = {name: {} for name in designs}
        for cell in read_cells(self.cells):
            design = designs.get(cell.block)
            if cell.stage != stage.name or design is None or cell.arm not in [arm.name for arm in design.arms]:
                continue
            kind: Any = cell.kind
            spec = RunSpec(kind, cell.replicate, cell.arm, cell.rate)
            if cell.seed != design.draw(spec).seed:
                raise UserError(
                    f"{cell.file} was run with the seed {cell.seed}, and {design.draw(spec).seed} is asked for."
                )
            asked = portable(design, spec, cell.block)
            if extended and asked != cell.settings:
                raise UserError(
                    f"{cell.file} was run with other settings than the study has now: "
                    f"{_difference(cell.settings, asked)}. "
                    "Check out the commit that it ran in, or remove the cells of its stage."
                )
            found[cell.block][design.digest_of(spec)] = cell.run
        return found

    def run_stage(self, stage: Stage, commit: str | None = None, blocks: tuple[Block, ...] | None = None) -> None:
        """Run the cells of a stage that are missing.

        Args:
            stage: of the study.
            commit: that registers it.
            blocks: only these.

        Raises:
            UserError: cells that new ones may not stand beside, or a run that ends with an error.
        """
        if stage.registered and commit is None:
            raise UserError(
                f"The stage {stage.name!r} takes its seeds from the commit that registers it; there is none."
            )
        self.cells.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.work / ".lock").acquire(timeout=0):
                self._run_stage(stage, commit, blocks or stage.blocks)
        except Timeout as error:
            raise UserError(f"Another process runs the study in {self.work}. Wait for it, or give --work.") from error

    def _run_stage(self, stage: Stage, commit: str | None, blocks: tuple[Block, ...]) -> None:
        quiet()
        prepare_processes(self.root)
        mine = [cell for cell in read_cells(self.cells) if cell.stage == stage.name]
        designs = {block.name: self.design(stage, block, commit) for block in blocks}
        results = self.known(stage, designs, extended=False)
        open_blocks = [b for b in blocks if _has_jobs(designs[b.name], results[b.name])]
        if not open_blocks:
            self.say(f"{stage.name}: all cells are there")
            return
        self.require_model()
        require_one_version(mine, self.here)
        for block in open_blocks:
            self.ensure_level(block.task, block.level)
        # now that checkpoints are there: their digests, and thresholds by what they think of the rows
        designs = {block.name: self.design(stage, block, commit) for block in open_blocks}
        results = self.known(stage, designs, extended=True)

        def run(name: str, spec: RunSpec) -> RunResult:
            return run_apart(designs[name], spec, self.work / "runs" / designs[name].digest_of(spec))

        def keep(name: str, spec: RunSpec, result: RunResult) -> None:
            cell = self._cell(stage, name, designs[name], spec, result, commit if stage.registered else None)
            path = write_cell(self.cells, cell)
            reading = result.readings.get(SCORE)
            told = "" if reading is None else f", exact match {reading:.3f}"
            self.say(f"{path.relative_to(self.cells)}: {result.outcome}{told}, {result.wall_seconds:.0f} s")

        run_missing(designs, results, run, keep, self.workers)

    def _cell(
        self, stage: Stage, block: str, design: Design, spec: RunSpec, result: RunResult, commit: str | None
    ) -> Cell:
        assert spec.rate is not None
        return Cell(
            STUDY, stage.name, block, spec.kind, spec.replicate, spec.arm, spec.rate, design.draw(spec).seed, commit,
            self.commit, portable(design, spec, block), dict(design.arm(spec.arm).facts), processor(), result.plain(),
        )  # fmt: skip


def portable(design: Design, spec: RunSpec, block: str) -> dict[str, Any]:
    """Return an arm's settings without where on this machine its checkpoint lies."""
    settings: dict[str, Any] = yaml.safe_load(design.arm(spec.arm).config)
    settings["model"]["model_name_or_path"] = f"checkpoint of {block.rpartition(', ')[0]}"
    return settings


def _has_jobs(design: Design, results: Mapping[str, RunResult]) -> bool:
    return bool(make_plan(design, results).jobs)


def _difference(a: Any, b: Any, where: str = "") -> str:
    """Return the first place where two settings differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if a.get(key) != b.get(key):
                return _difference(a.get(key), b.get(key), f"{where}.{key}".strip("."))
    return f"{where} was {a!r} and is {b!r}"
