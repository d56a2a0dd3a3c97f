"""One cell run again on this machine, beside what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_sft.compare.design import RunSpec
from lightning_sft.files import remove_leftovers
from studies.again import compared, named_cell
from studies.cells import read_cells
from studies.findings import judged, scores
from studies.phantoms.arms import FULL
from studies.phantoms.design import ALONE, BACKGROUND, FLIPPED, JUMPS, MODEL, STAGES
from studies.phantoms.runs import Study
from studies.side_by_side import prepare_processes


def run_small(
    root: Path,
    cells: Path,
    work: Path,
    model: str = MODEL,
    say: Callable[[str], None] = print,
    small: Mapping[str, Any] | None = None,
) -> bool | None:
    """Run the first replicate of the arm that trains all weights, and say how it compares.

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
    cell = named_cell(stored, ALONE.name, FULL)
    if cell is None:
        say(f"small: no cell of {FULL!r} has run yet, so there is none to run again")
        return None
    study = Study(root, work / "cells", work, model, say, small)
    study.require_model()
    prepare_processes(root)
    remove_leftovers(work)
    design = study.design(STAGES[cell.stage], ALONE, cell.registered)
    result = study.run(design, RunSpec("judged", cell.replicate, cell.arm, cell.rate))
    there = scores(judged(stored, cell.stage, ALONE.name), FULL, FLIPPED)
    lines, same = compared(cell, result, list(there.values()), (FLIPPED, BACKGROUND, JUMPS))
    say("\n".join(lines))
    return same
