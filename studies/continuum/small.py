"""One cell run again on this machine, beside what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_sft.cli.compare.trial import run_apart
from lightning_sft.compare.design import RunSpec
from lightning_sft.compare.result import RunResult
from lightning_sft.files import remove_leftovers
from lightning_sft.sweep.intervals import interval
from studies.cells import Cell, processor, read_cells
from studies.continuum.analysis import judged, scores
from studies.continuum.design import FIRST, MODEL, SAMPLED, SCORE, STAGES, Block
from studies.continuum.runs import Study
from studies.side_by_side import prepare_processes

#: the cell, by its block; of the confirmatory runs, or of the pilot while there are none
BLOCK = Block("sums", "weak", noisy=True)


def named_cell(cells: Sequence[Cell]) -> Cell | None:
    """Return the cell that is run again; None before it has run."""
    for stage in ("confirmatory", "pilot"):
        for cell in cells:
            if (cell.stage, cell.block, cell.kind, cell.replicate, cell.arm) == (stage, BLOCK.name, "judged", 0, FIRST):
                return cell
    return None


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
    cell = named_cell(stored)
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
    result = run_apart(design, spec, work / "runs" / design.digest_of(spec))
    there = scores(judged(stored, cell.stage, BLOCK.name), FIRST)
    lines, same = compared(cell, result, list(there.values()))
    say("\n".join(lines))
    return same


def compared(cell: Cell, result: RunResult, replicates: Sequence[float]) -> tuple[list[str], bool]:
    """Return lines that set a run beside its stored cell, and whether it was reproduced.

    On the same processor the readings must agree to the digits that are printed. On another one the exact match must
    lie within the interval for one more run of the arm's replicates, which is as far as rounding may take a run.

    Args:
        cell: as it is stored.
        result: of the same run on this machine.
        replicates: exact match of the arm in all replicates that are there.
    """
    lines = [f"{cell.file}, stored from {cell.processor} ({cell.version}):"]
    agree = True
    for key in (SCORE, SAMPLED):
        a, b = (f"{r.score(key):.4f}" for r in (cell.run, result))
        lines.append(f"  {key}: stored {a}, here {b}")
        agree &= a == b
    if processor() == cell.processor or len(replicates) < 2:
        lines.append(f"  {'reproduced' if agree else 'NOT reproduced'} to the digits printed")
        return lines, agree
    wide = interval(replicates)
    assert wide.high is not None
    half = (wide.high - wide.mean) * (len(replicates) + 1) ** 0.5  # of one more run, not of the mean
    inside = abs(result.score(SCORE) - wide.mean) <= half
    lines.append(
        f"  on another processor ({processor()}): {'within' if inside else 'NOT within'} "
        f"{wide.mean:.4f} ± {half:.4f}, the interval for one more replicate"
    )
    return lines, inside
