"""One cell run again on this machine, beside what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_sft.compare.design import RunSpec
from lightning_sft.files import remove_leftovers
from studies.again import compared, named_cell
from studies.cells import read_cells
from studies.continuum.design import FIRST, MODEL, SAMPLED, SCORE, STAGES, Block
from studies.continuum.runs import Study
from studies.findings import judged, scores
from studies.side_by_side import prepare_processes

#: the block of the cell that is run again
BLOCK = Block("initials", "weak", noisy=True)


def run_small(
    root: Path,
    cells: Path,
    work: Path,
    model: str = MODEL,
    say: Callable[[str], None] = print,
    small: Mapping[str, Any] | None = None,
) -> bool | None:
    """Make the checkpoint anew, run the named cell from it, and say how it compares.

    Args:
        root: of the checkout.
        cells: folder of cells; nothing is written there.
        work: folder of its own.
        model: that everything begins with.
        say: is told what is done.
        small: other numbers for a toy.

    Returns:
        Whether the cell was reproduced; None where there is none to run again.
    """
    stored = read_cells(cells)
    cell = named_cell(stored, BLOCK.name, FIRST)
    if cell is None:
        say(f"small: no cell of {BLOCK.name} has run yet, so there is none to run again")
        return None
    study = Study(root, work / "cells", work, model, say, small)
    study.require_model()
    prepare_processes(root)
    stage = STAGES[cell.stage]
    remove_leftovers(work)
    study.ensure_level(BLOCK.task, BLOCK.level)
    design = study.design(stage, BLOCK, cell.registered)
    kind: Any = cell.kind
    spec = RunSpec(kind, cell.replicate, cell.arm, cell.rate)
    result = study.run(design, spec)
    there = scores(judged(stored, cell.stage, BLOCK.name), FIRST, SCORE)
    lines, same = compared(cell, result, list(there.values()), (SCORE, SAMPLED))
    say("\n".join(lines))
    return same
