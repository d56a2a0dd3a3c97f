"""A run done again on this machine, beside what is stored of it."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sft.compare.result import RunResult
from lightning_sft.sweep.intervals import interval
from studies.cells import Cell, processor


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
