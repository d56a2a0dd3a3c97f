"""One cell run again on this machine, beside what is stored of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from studies.again import run_again
from studies.phantoms.arms import FULL
from studies.phantoms.design import ALONE, BACKGROUND, FLIPPED, JUMPS, MODEL, STAGES
from studies.phantoms.runs import Study


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
        See `run_again`.
    """
    study = Study(root, work / "cells", work, model, say, small)
    return run_again(study, cells, STAGES, ALONE, FULL, (FLIPPED, BACKGROUND, JUMPS))
