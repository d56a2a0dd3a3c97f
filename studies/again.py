"""A run done again on this machine, beside what is stored of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_sft.compare.design import RunSpec
from lightning_sft.compare.result import RunResult
from lightning_sft.files import remove_leftovers
from lightning_sft.sweep.intervals import interval
from studies.cells import Cell, processor, read_cells
from studies.findings import judged, scores
from studies.side_by_side import prepare_processes
from studies.study import AnyBlock, AnyStage, Study


def run_again(
    study: Study, cells: Path, stages: Mapping[str, AnyStage], block: AnyBlock, arm: str, keys: Sequence[str]
) -> bool | None:
    """Run the first replicate of an arm once more, and say how it compares with its stored cell.

    Args:
        study: in a folder of its own, where what the block starts from is made anew.
        cells: folder of stored cells; nothing is written there.
        stages: of the study, by name.
        block: of the cell.
        arm: of the cell.
        keys: of the readings that are compared, the one whose interval over replicates counts in front.

    Returns:
        Whether the cell was reproduced; None where there is none to run again.
    """
    stored = read_cells(cells)
    cell = named_cell(stored, block.name, arm)
    if cell is None:
        study.say(f"small: no cell of {arm!r} in {block.name!r} has run yet, so there is none to run again")
        return None
    study.require_model()
    prepare_processes(study.root)
    remove_leftovers(study.work)
    study.make_start(block)
    design = study.design(stages[cell.stage], block, cell.registered)
    result = study.run(design, RunSpec("judged", cell.replicate, cell.arm, cell.rate))
    there = scores(judged(stored, cell.stage, block.name), arm, keys[0])
    lines, same = compared(cell, result, list(there.values()), keys)
    study.say("\n".join(lines))
    return same


def named_cell(cells: Sequence[Cell], block: str, arm: str) -> Cell | None:
    """Return the first replicate of an arm: of the confirmatory runs, or of the pilot while there are none."""
    for stage in ("confirmatory", "pilot"):
        for cell in cells:
            if (cell.stage, cell.block, cell.kind, cell.replicate, cell.arm) == (stage, block, "judged", 0, arm):
                return cell
    return None


def compared(cell: Cell, result: RunResult, replicates: Sequence[float], keys: Sequence[str]) -> tuple[list[str], bool]:
    """Return lines that set a run beside its stored cell, and whether it was reproduced.

    On the same processor the readings must agree to the digits that are printed. On another one the first of them must
    lie within the interval for one more run of the arm's replicates, which is as far as rounding may take a run.

    Args:
        cell: as it is stored.
        result: of the same run on this machine.
        replicates: the first reading of the arm in all replicates that are there.
        keys: of the readings that are compared.
    """
    lines = [f"{cell.file}, stored from {cell.processor} ({cell.version}):"]
    agree = True
    for key in keys:
        a, b = (f"{r.score(key):.4f}" for r in (cell.run, result))
        lines.append(f"  {key}: stored {a}, here {b}")
        agree &= a == b
    if processor() == cell.processor or len(replicates) < 2:
        lines.append(f"  {'reproduced' if agree else 'NOT reproduced'} to the digits printed")
        return lines, agree
    wide = interval(replicates)
    assert wide.high is not None
    half = (wide.high - wide.mean) * (len(replicates) + 1) ** 0.5  # of one more run, not of the mean
    inside = abs(result.score(keys[0]) - wide.mean) <= half
    lines.append(
        f"  on another processor ({processor()}): {'within' if inside else 'NOT within'} "
        f"{wide.mean:.4f} ± {half:.4f}, the interval for one more replicate"
    )
    return lines, inside
