"""Runs one stored unit again, and sets what it gives beside its cell."""

from __future__ import annotations

from pathlib import Path

from studies.again import named_cell
from studies.cells import processor, read_cells
from studies.rates.design import ARM, MAIN, STAGES, sizes_of
from studies.rates.runs import Study, seed_of
from studies.rates.unit import JUDGED, Task, at_rates, run_unit
from studies.registration import seed_text
from studies.side_by_side import prepare_processes

#: how far the NLL at a rate may lie from the stored one on another processor, whose rounding differs, in nats
NEAR = 0.02


def run_small(root: Path, cells: Path, work: Path) -> bool | None:
    """Make the model anew, run the first unit again, and say whether its grid is that of the stored cell.

    On the same processor and on the model that the cell stands on it must be the same to six digits, else to 0.02 nats
    at the median rate.

    Args:
        root: of the checkout.
        cells: folder of stored cells; nothing is written there.
        work: folder for the run.

    Returns:
        Whether the cell was reproduced; None where there is none to run again.
    """
    block = MAIN.blocks[0]
    stored = named_cell(read_cells(cells), block.name, ARM)
    if stored is None:
        print(f"small: no cell of {block.name!r} has run yet, so there is none to run again")
        return None
    study = Study(root, work / "cells", work, workers=1)
    study.require_model()
    prepare_processes(root)
    study.make_start(block)
    stage = STAGES[stored.stage]
    text = seed_text(study.name, stored.registered or study.unregistered(stage))
    seed = seed_of(text, block.name, stored.replicate)
    again = run_unit(
        Task("again", str(study.checkpoint(block.model)), block.task, block.lora, seed, sizes_of(), str(work / "run"))
    )
    there, here = (at_rates(readings, JUDGED) for readings in (stored.run.readings, again.readings))
    apart = sorted(abs(there[rate] - here[rate]) for rate in there if rate in here)
    median = apart[len(apart) // 2] if apart else float("inf")
    same = median <= (1e-6 if processor() == stored.processor else NEAR)
    print(
        f"{stored.file}: at {len(apart)} of {len(there)} rates, NLL apart by {median:.2g} in the median: "
        f"{'reproduced' if same else 'NOT reproduced'}"
    )
    return same
