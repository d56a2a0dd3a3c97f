"""One cell run again on this machine, beside what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from studies.again import run_again
from studies.continuum.design import FIRST, MODEL, SAMPLED, SCORE, STAGES, Block
from studies.continuum.runs import Study

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
        See `run_again`.
    """
    study = Study(root, work / "cells", work, model, say, small)
    return run_again(study, cells, STAGES, BLOCK, FIRST, (SCORE, SAMPLED))
