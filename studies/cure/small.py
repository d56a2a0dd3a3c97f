"""One cell run again on this machine, beside what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from studies.again import run_again
from studies.cure.design import AHEAD, BACKGROUND, DENSE, FIRST, MODEL, STAGES
from studies.cure.runs import Study


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
        See `run_again`.
    """
    study = Study(root, work / "cells", work, model, say, small)
    study.control_cells = cells  # the bound on collateral, which the control runs have given
    return run_again(study, cells, STAGES, DENSE, FIRST, (AHEAD, BACKGROUND))
