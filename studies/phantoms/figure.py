"""The figure of the page: which contexts flipped and which failed silently, by arm, for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sft.compare.result import RunResult
from studies.cells import Cell
from studies.findings import judged, scores
from studies.phantoms.arms import FULL
from studies.phantoms.design import FLIPPED, SILENT, STAGES
from studies.themes import Bar, bars_of, draw_bars, draw_in_themes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: what is drawn: stage, log key, words
PANELS = (
    ("confirmatory", FLIPPED, "answers alone:\nflipped, %"),
    ("confirmatory", SILENT, "answers alone:\nsilent failure, %"),
    ("mixed", SILENT, "among sentences:\nsilent failure, %"),
)


def bars(cells: Sequence[Cell], stage_name: str, key: str) -> list[Bar]:
    """Return each arm of a stage with its share and interval over replicates; [] before the stage is complete.

    In a run that diverged nothing flipped, and nothing failed silently: its loss rose.
    """
    stage = STAGES[stage_name]
    runs: dict[str, dict[int, RunResult]] = judged(cells, stage.name, stage.blocks[0].name)
    if any(len(runs.get(arm, {})) < stage.replicates for arm in stage.arms):
        return []
    return bars_of({arm: list(scores(runs, arm, key).values()) for arm in stage.arms})


def draw(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write the figure for each theme, where any stage is complete; returns its files.

    Args:
        cells: of the study.
        folder: of figures.
    """
    panels = [(words, found) for stage, key, words in PANELS if (found := bars(cells, stage, key))]

    def draw_panels(figure: Figure, colours: Mapping[str, str]) -> None:
        drawn = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (words, found) in zip(drawn, panels, strict=True):
            draw_bars(axes, found, lambda arm: colours["second" if arm == FULL else "first"])
            axes.set_xlim(0, 100)  # shares, to be compared between panels
            axes.margins(y=0.12)
            axes.set_xlabel(words, color=colours["text"], fontsize=8)

    return draw_in_themes(folder, "phantoms", (7.2, 2.4), draw_panels) if panels else []
