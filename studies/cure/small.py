"""One cell run again on this machine, beside what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_sft.compare.design import RunSpec
from lightning_sft.files import remove_leftovers
from studies.again import compared, named_cell
from studies.cells import read_cells
from studies.cure.design import AHEAD, BACKGROUND, DENSE, FIRST, MODEL, STAGES
from studies.cure.runs import Study
from studies.findings import judged, scores
from studies.side_by_side import prepare_processes


def run_small(
    root: Path,
    cells: Path,
    work: Path,
    model: str = MODEL,
    say: Callable[[str], None] = print,
    small: Mapping[str, Any] | None = None,
) -> bool | None:
    """Make the checkpoint anew, run the first replicate of NLL from it, and say how it compares.

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
    cell = named_cell(stored, DENSE.name, FIRST)
    if cell is None:
        say(f"small: no cell of {FIRST} has run yet, so there is none to run again")
        return None
    study = Study(root, work / "cells", work, model, say, small)
    study.control_cells = cells  # the bound on collateral, which the control runs have given
    study.require_model()
    prepare_processes(root)
    remove_leftovers(work)
    study.ensure_adapted()
    design = study.design(STAGES[cell.stage], DENSE, cell.registered)
    result = study.run(design, RunSpec("judged", cell.replicate, cell.arm, cell.rate))
    there = scores(judged(stored, cell.stage, DENSE.name), FIRST, AHEAD)
    lines, same = compared(cell, result, list(there.values()), (AHEAD, BACKGROUND))
    say("\n".join(lines))
    return same
