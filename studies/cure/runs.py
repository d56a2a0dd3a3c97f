"""Runs of the cure study: the adapted checkpoint, the control runs that bound collateral, and the arms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_sft.compare.design import RunSpec
from lightning_sft.compare.rates import Progress, search
from lightning_sft.compare.result import RunResult
from studies import study
from studies.cells import Cell, read_cells
from studies.cure import adapted
from studies.cure.design import (
    BACKGROUND,
    CONTROL,
    MODEL,
    SCORE,
    SEARCH_BOUND,
    STAGES,
    STUDY,
    Block,
    Stage,
    arm_words,
    run_settings,
    sizes_of,
)
from studies.cure.rows import Background, HouseRows
from studies.cure.texts import wordnet
from studies.side_by_side import run_wanted


class Study(study.Study):
    """The cure study on this machine; see `studies.study.Study`."""

    name = STUDY
    default_model = MODEL
    score = SCORE
    direction = ":max"
    score_words = "score"

    #: folder of the cells that the bound on collateral follows from; None: the study's own
    control_cells: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """Where the adapted checkpoint is, or will be."""
        return self.work / "adapted"

    @override
    def require_model(self) -> None:
        super().require_model()
        wordnet()
        if self.small is None:
            require_sentences()

    @override
    def settings(self, stage: Stage, block: Block) -> dict[str, Any]:
        # before it is made, the model itself: the design is asked only for what is missing then
        model = str(self.checkpoint) if self.checkpoint.is_dir() else self.model
        return run_settings(stage, block, model, self.small)

    @override
    def arm_words(self, stage: Stage, block: Block, arm: str) -> list[str]:
        level = self.level_cell(adapted.BLOCK)
        weight = 1.0 if level is None else level.run.readings[adapted.MATCHED]
        return arm_words(stage, block, arm, self.bound(stage, block), weight, self.small)

    @override
    def make_start(self, block: Block) -> None:
        self.ensure_adapted()

    @override
    def prepare_block(self, stage: Stage, block: Block, commit: str | None) -> None:
        super().prepare_block(stage, block, commit)
        design = self.design(stage, block, commit)

        def wanted(under_way: Sequence[tuple[str, RunSpec]]) -> Iterator[tuple[str, RunSpec]]:
            found = self._control(stage, block)
            for rate in control_search(stage, found).wanted.get(CONTROL, []):
                for replicate in range(stage.search_replicates):
                    spec = RunSpec("search", replicate, CONTROL, rate)
                    if replicate not in found.get(rate, {}) and (block.name, spec) not in under_way:
                        yield block.name, spec

        def keep(name: str, spec: RunSpec, result: RunResult) -> None:
            self.keep(stage, block, design, spec, result, commit)

        run_wanted(wanted, lambda name, spec: self.run(design, spec), keep, self.workers)

    def ensure_adapted(self) -> None:
        """Make the adapted checkpoint unless it is there.

        Raises:
            UserError: the one here is not the one that its cell tells of.
        """

        def make() -> Cell:
            self.say("adapted: fine-tuning to the sentences as they are")
            return adapted.make_adapted(self.model, self.checkpoint, self.commit, self.small)

        self.require_checkpoint(adapted.BLOCK, self.checkpoint, make)

    def bound(self, stage: Stage, block: Block) -> float | None:
        """Return the largest background NLL at equal collateral; None before the control run's rate is found."""
        found = self._control(stage, block)
        progress = control_search(stage, found)
        if progress.wanted:
            return None
        row = found[progress.best[CONTROL]]
        return SEARCH_BOUND * sum(row.values()) / len(row)

    def _control(self, stage: Stage, block: Block) -> dict[float, dict[int, float]]:
        """Return the background NLL of the control runs that a search has done, by rate and replicate."""
        found: dict[float, dict[int, float]] = {}
        for cell in read_cells(self.control_cells or self.cells):
            if cell.stage not in (stage.name, stage.rates_of):
                continue
            if (cell.block, cell.kind, cell.arm) == (block.name, "search", CONTROL):
                nll = cell.run.score(BACKGROUND)
                found.setdefault(cell.rate, {})[cell.replicate] = math.inf if math.isnan(nll) else nll
        return found

    @override
    def start_words(self, block: Block) -> str:
        return "the adapted checkpoint"


def require_sentences() -> None:
    """Draw the rows of every block once, and those that the checkpoint is adapted to.

    Raises:
        UserError: there are fewer sentences, or pairs with enough of them, than a draw asks for.
    """
    sizes = sizes_of(None)
    Background("adapt", sizes["adapt"] * sizes["rows"], whole=True).texts()
    Background("judged", sizes["judged"]).texts()
    for stage in STAGES.values():
        for block in stage.blocks:
            HouseRows(stage.pool, block.steps * sizes["rows"], sizes["pairs"], block.contexts).texts()


def control_search(stage: Stage, found: Mapping[float, Mapping[int, float]]) -> Progress:
    """Return where the control run's own search stands: of background NLL, by its own grid, refined once.

    Its background NLL is flat around the best rate; an arm's collateral is not.

    Args:
        stage: of the study.
        found: rate -> search replicate -> background NLL.
    """
    whole = {rate: row for rate, row in found.items() if len(row) == stage.search_replicates}
    scores = {rate: (-sum(row.values()) / len(row),) for rate, row in whole.items()}
    return search(replace(stage.search, refine=min(1, stage.search.refine)), [CONTROL], {CONTROL: scores})
