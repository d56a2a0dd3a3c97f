"""A study on this machine: which cells are missing, what new ones may stand beside, and running them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

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
from lightning_sft.compare.rates import RateSearch
from lightning_sft.compare.result import RunResult
from lightning_sft.errors import UserError
from lightning_sft.places import PACKAGE_SCHEME, package_file
from studies.cells import Cell, processor, read_cells, require_one_version, write_cell
from studies.registration import head, seed_text
from studies.side_by_side import Results, prepare_processes, run_missing


class AnyBlock(Protocol):
    """What arms are compared within."""

    @property
    def name(self) -> str:
        """Its name in cells and tables."""
        ...


class AnyStage(Protocol):
    """A part of a study: blocks, arms, replicates."""

    @property
    def name(self) -> str:
        """Its name in cells."""
        ...

    @property
    def blocks(self) -> tuple[Any, ...]:
        """That it runs."""
        ...

    @property
    def arms(self) -> tuple[str, ...]:
        """In order; the first is what the others are compared with."""
        ...

    @property
    def replicates(self) -> int:
        """Judged runs of each arm in each block."""
        ...

    @property
    def registered(self) -> bool:
        """Whether its seeds follow from the commit that registers it."""
        ...

    @property
    def search(self) -> RateSearch:
        """Of each arm's rate."""
        ...

    @property
    def search_replicates(self) -> int:
        """That rates are selected on."""
        ...

    @property
    def rates_of(self) -> str:
        """Stage whose search gives the rates of the blocks that it has; empty: every block searches in this stage."""
        ...


class Study(ABC):
    """A study on this machine. Subclasses say what a run is, and make the checkpoints that runs start from.

    Args:
        root: of the checkout.
        cells: folder of cells.
        work: folder of checkpoints and runs under way.
        model: that everything begins with; None: the study's own.
        say: is told what is done.
        small: other numbers for a toy; see the study's own design.
        workers: runs side by side.
    """

    #: its name in cells, the model that it begins with, and the log key that rates are selected by, with its direction
    #: and in words
    name: str
    default_model: str
    score: str
    direction: str = ""
    score_words: str

    def __init__(
        self,
        root: Path,
        cells: Path,
        work: Path,
        model: str | None = None,
        say: Callable[[str], None] = print,
        small: Mapping[str, Any] | None = None,
        workers: int = 2,
    ) -> None:
        self.root, self.cells, self.work, self.model = root, cells, work, model or self.default_model
        self.say, self.small, self.workers = say, small, workers
        self.here = common_facts(torch.device("cpu"))
        self.commit = head(root)

    def require_model(self) -> None:
        """Raise if a package that carries the model is missing.

        Raises:
            UserError: names the package and how to install it.
        """
        if self.model.startswith(PACKAGE_SCHEME):
            package_file(self.model)

    # ------------------------------------------------------------------ what a study says of itself

    @abstractmethod
    def settings(self, stage: Any, block: Any) -> dict[str, Any]:
        """Return the configuration that the arms of a block share, as far as it is known now."""

    @abstractmethod
    def arm_words(self, stage: Any, block: Any, arm: str) -> list[str]:
        """Return the arguments of ``lightning compare`` that make an arm."""

    @abstractmethod
    def make_start(self, block: Any) -> None:
        """Make the checkpoint that the runs of a block start from, unless it is there or they need none."""

    def prepare_block(self, stage: Any, block: Any, commit: str | None) -> None:
        """Make what the runs of a block need: its checkpoint, and runs of others that its own are measured by."""
        self.make_start(block)

    @abstractmethod
    def start_words(self, block: Any) -> str:
        """Return what a block's runs start from, without where on this machine it lies."""

    # ------------------------------------------------------------------ checkpoints

    def require_checkpoint(self, named: str, folder: Path, make: Callable[[], Cell]) -> None:
        """Make a checkpoint unless it is there, and see that it is the one that its cell tells of.

        Args:
            named: block of its cell.
            folder: of the checkpoint.
            make: makes it, and returns the cell that tells of it.

        Raises:
            UserError: the one here is not the one that the cell tells of.
        """
        known = self.level_cell(named)
        if not folder.exists():
            cell = make()
            if known is None:
                write_cell(self.cells, cell)
                return
        elif known is None:
            raise UserError(f"{folder} is there, and no cell tells of it. Remove the folder, and it is made again.")
        made = model_digest(str(folder), None)
        if made != known.facts["model"]:
            raise UserError(
                f"The checkpoint of {named} in {folder} is {made}, and the cells in {self.cells} stand on "
                f"{known.facts['model']}, made on {known.processor}. Runs from both would stand in one table. Copy "
                "that checkpoint here, or run the study anew with --cells and --work of other folders."
            )

    def level_cell(self, named: str) -> Cell | None:
        """Return the cell that tells of a checkpoint; None before it is made."""
        found = [cell for cell in read_cells(self.cells) if cell.kind == "level" and cell.block == named]
        return found[0] if found else None

    # ------------------------------------------------------------------ stages

    def design(self, stage: AnyStage, block: AnyBlock, commit: str | None) -> Design:
        """Return the comparison of a block.

        Args:
            stage: of the study.
            block: of the stage.
            commit: that registers the stage; None for stages that need none.
        """
        text = seed_text(self.name, commit if stage.registered and commit else self.unregistered(stage))
        search = stage.search
        words = [f"--config={yaml.safe_dump(self.settings(stage, block), sort_keys=False)}", "--name", block.name]
        words += ["--select", self.score + self.direction]
        words += ["--seed", text, "--replicates", str(stage.replicates), "--low", str(search.low)]
        words += ["--search_replicates", str(stage.search_replicates), "--high", str(search.high)]
        words += ["--points", str(search.points), "--refine", str(search.refine), "--grow", str(search.grow)]
        by_name = [self.arm_words(stage, block, arm) for arm in stage.arms]
        named = [words_of[1] for words_of in by_name if words_of[0] == "--objectives"]
        words += ["--objectives", ",".join(named)] if named else []
        for words_of in by_name:
            words += words_of if words_of[0] == "--arm" else []
        return make_design(*parse(words))

    def unregistered(self, stage: AnyStage) -> str:
        """Return the text that seeds of a stage follow from where no commit registers it."""
        return stage.name

    def known(self, stage: AnyStage, designs: Mapping[str, Design], *, extended: bool) -> Results:
        """Return what cells have given already, by block and by the digest that this machine's design gives the run.

        Args:
            stage: of the study.
            designs: by the name of their block.
            extended: whether further cells are to stand beside them, and so must have the same settings.

        Raises:
            UserError: a cell that was run with another seed, or with other settings, than the design asks for.
        """
        found: Results = {name: {} for name in designs}
        blocks = {block.name: block for block in stage.blocks}
        for cell in read_cells(self.cells):
            design = designs.get(cell.block)
            if design is None or cell.arm not in [arm.name for arm in design.arms]:
                continue
            kind: Any = cell.kind
            spec = RunSpec(kind, cell.replicate, cell.arm, cell.rate if stage.search.points else None)
            if cell.stage == stage.rates_of and cell.kind == "search":
                found[cell.block][design.digest_of(spec)] = cell.run
            if cell.stage != stage.name:
                continue
            if cell.seed != design.draw(spec).seed:
                raise UserError(
                    f"{cell.file} was run with the seed {cell.seed}, and {design.draw(spec).seed} is asked for."
                )
            asked = self.portable(design, spec, blocks[cell.block])
            if extended and asked != cell.settings:
                raise UserError(
                    f"{cell.file} was run with other settings than the study has now: "
                    f"{_difference(cell.settings, asked)}. "
                    "Check out the commit that it ran in, or remove the cells of its stage."
                )
            found[cell.block][design.digest_of(spec)] = cell.run
        return found

    def run_stage(self, stage: AnyStage, commit: str | None = None, blocks: Sequence[AnyBlock] | None = None) -> None:
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

    def _run_stage(self, stage: AnyStage, commit: str | None, blocks: Sequence[AnyBlock]) -> None:
        quiet()
        prepare_processes(self.root)
        mine = [cell for cell in read_cells(self.cells) if cell.stage == stage.name]
        designs = {block.name: self.design(stage, block, commit) for block in blocks}
        results = self.known(stage, designs, extended=False)
        open_blocks = [b for b in blocks if make_plan(designs[b.name], results[b.name]).jobs]
        if not open_blocks:
            self.say(f"{stage.name}: all cells are there")
            return
        self.require_model()
        require_one_version(mine, self.here)
        for block in open_blocks:
            self.prepare_block(stage, block, commit)
        self._require_rates(stage, open_blocks)
        # now that checkpoints are there: their digests, and settings that follow from them
        designs = {block.name: self.design(stage, block, commit) for block in open_blocks}
        results = self.known(stage, designs, extended=True)
        by_name = {block.name: block for block in open_blocks}

        def keep(name: str, spec: RunSpec, result: RunResult) -> None:
            self.keep(stage, by_name[name], designs[name], spec, result, commit)

        run_missing(designs, results, lambda name, spec: self.run(designs[name], spec), keep, self.workers)

    def _require_rates(self, stage: AnyStage, blocks: Sequence[AnyBlock]) -> None:
        """Raise if the search that a stage takes its rates from is not complete.

        Raises:
            UserError: names stage and block.
        """
        cells = read_cells(self.cells)
        for block in blocks:
            given = [c for c in cells if (c.stage, c.block) == (stage.rates_of, block.name)]
            judged = {c.arm for c in given if c.kind == "judged"}  # these run once the search is complete
            if given and not judged >= set(stage.arms):
                raise UserError(
                    f"{stage.name!r} takes the rates of {block.name!r} from the stage {stage.rates_of!r}, which is not "
                    "complete. Run that first."
                )

    def run(self, design: Design, spec: RunSpec) -> RunResult:
        """Do one run, in a process of its own."""
        return run_apart(design, spec, self.work / "runs" / design.digest_of(spec))

    def keep(
        self, stage: AnyStage, block: AnyBlock, design: Design, spec: RunSpec, result: RunResult, commit: str | None
    ) -> None:
        """Write the cell of a finished run, and say what came out.

        Args:
            stage: of the study.
            block: of the stage.
            design: of the block.
            spec: of the run.
            result: of the run.
            commit: that registers the stage.
        """
        cell = self._cell(stage, block, design, spec, result, commit if stage.registered else None)
        path = write_cell(self.cells, cell)
        reading = result.readings.get(self.score)
        told = "" if reading is None else f", {self.score_words} {reading:.3f}"
        self.say(f"{path.relative_to(self.cells)}: {result.outcome}{told}, {result.wall_seconds:.0f} s")

    def _cell(
        self, stage: AnyStage, block: AnyBlock, design: Design, spec: RunSpec, result: RunResult, commit: str | None
    ) -> Cell:
        settings = self.portable(design, spec, block)
        given = float(settings["model"]["optimizer"]["init_args"]["lr"])  # of a stage that searches no rate
        return Cell(
            self.name, stage.name, block.name, spec.kind, spec.replicate, spec.arm,
            given if spec.rate is None else spec.rate, design.draw(spec).seed, commit, self.commit, settings,
            dict(design.arm(spec.arm).facts), processor(), result.plain(),
        )  # fmt: skip

    def portable(self, design: Design, spec: RunSpec, block: AnyBlock) -> dict[str, Any]:
        """Return an arm's settings without where on this machine its checkpoint lies."""
        settings: dict[str, Any] = yaml.safe_load(design.arm(spec.arm).config)
        settings["model"]["model_name_or_path"] = self.start_words(block)
        return settings


def _difference(a: Any, b: Any, where: str = "") -> str:
    """Return the first place where two settings differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if a.get(key) != b.get(key):
                return _difference(a.get(key), b.get(key), f"{where}.{key}".strip("."))
    return f"{where} was {a!r} and is {b!r}"
