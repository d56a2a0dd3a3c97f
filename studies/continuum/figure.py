"""The figure of the page: D over the mean p of the checkpoint, on clean and on noisy rows, for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studies.cells import Cell
from studies.continuum.analysis import block_row, mean_p
from studies.continuum.design import FIRST, SECOND, Stage
from studies.themes import draw_in_themes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: kind of rows -> colour of a theme
COLOURS = {"noisy": "second", "clean": "first"}


def points(cells: Sequence[Cell], stage: Stage, task: str, noisy: bool) -> list[tuple[float, float, float, float]]:
    """Return mean p, D and the ends of its interval, in points, of each complete block of a task."""
    found = []
    for block in stage.blocks:
        place = mean_p(cells, block)
        if (block.task, block.noisy) != (task, noisy) or place is None:
            continue
        exact = block_row(cells, stage, block).exact
        if exact.complete and exact.difference is not None and exact.difference.low is not None:
            assert exact.difference.high is not None
            ends = (exact.difference.mean, exact.difference.low, exact.difference.high)
            found.append((place, 100 * ends[0], 100 * ends[1], 100 * ends[2]))
    return sorted(found)


def draw(cells: Sequence[Cell], stage: Stage, task: str, folder: Path) -> list[Path]:
    """Write the figure for each theme, where any block is complete; returns its files.

    Args:
        cells: of the study.
        stage: that is drawn.
        task: whose blocks are drawn.
        folder: of figures.
    """
    curves = {name: points(cells, stage, task, name == "noisy") for name in ("noisy", "clean")}

    def panel(figure: Figure, colours: Mapping[str, str]) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=colours["line"], linewidth=0.8, zorder=0)
        for name, curve in curves.items():
            if not curve:
                continue
            x, mean, low, high = zip(*curve, strict=True)
            shift = 0.004 if name == "noisy" else -0.004
            x = tuple(v + shift for v in x)
            axes.vlines(x, low, high, color=colours[COLOURS[name]], linewidth=1.6)
            axes.plot(x, mean, "o-", color=colours[COLOURS[name]], linewidth=1.0, markersize=6, label=f"{name} rows")
        axes.set_xlabel("mean p of the checkpoint on the task", color=colours["text"])
        axes.set_ylabel(f"exact match, points:\n{SECOND} minus {FIRST}", color=colours["text"])
        axes.legend(frameon=False, labelcolor=colours["text"], fontsize=9)

    return draw_in_themes(folder, "continuum", (6.4, 3.4), panel) if any(curves.values()) else []
