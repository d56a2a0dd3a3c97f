"""The figure of the page: how often the right word is ahead in unseen sentences, by arm, for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studies.cells import Cell
from studies.cure.analysis import share_of
from studies.cure.design import CONTROL, CURE, Block, Stage
from studies.findings import judged
from studies.themes import Bar, bars_of, draw_bars, draw_in_themes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bars(cells: Sequence[Cell], stage: Stage, block: Block) -> list[Bar]:
    """Return each arm of a block with its share; [] before the block is complete."""
    runs = judged(cells, stage.name, block.name)
    if any(len(runs.get(arm, {})) < stage.replicates for arm in stage.arms):
        return []
    return bars_of({arm: list(share_of(runs, arm).values()) for arm in stage.arms})


def draw(cells: Sequence[Cell], stage: Stage, folder: Path) -> list[Path]:
    """Write the figure for each theme, where any block is complete; returns its files.

    Args:
        cells: of the study.
        stage: that is drawn.
        folder: of figures.
    """
    rows = {block.name: found for block in stage.blocks if (found := bars(cells, stage, block))}

    def panels(figure: Figure, colours: Mapping[str, str]) -> None:
        drawn = figure.subplots(1, len(rows), sharex=True, sharey=True, squeeze=False)[0]
        own = {CURE: colours["second"], CONTROL: colours["line"]}
        for axes, (name, found) in zip(drawn, rows.items(), strict=True):
            draw_bars(axes, found, lambda arm: own.get(arm, colours["first"]))
            axes.set_title(name, color=colours["text"], fontsize=9)
            axes.set_xlabel("right word ahead, % of unseen sentences", color=colours["text"], fontsize=9)

    return draw_in_themes(folder, "cure", (7.2, 2.8), panels) if rows else []
