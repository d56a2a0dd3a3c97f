"""The figure of the page: what each rule loses, for light and dark pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from studies.cells import Cell
from studies.rates.analysis import losses, units
from studies.rates.design import MAIN
from studies.themes import draw_in_themes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write the figure for each theme, once all units of the confirmatory stage are there; returns its files.

    Args:
        cells: of the study.
        folder: of figures.
    """
    if len(units(cells, MAIN)) < len(MAIN.blocks) * MAIN.replicates:
        return []
    found = sorted(losses(cells), key=lambda one: one.mean, reverse=True)

    def draw_rules(figure: Figure, colours: Mapping[str, str]) -> None:
        axes = figure.subplots()
        for i, one in enumerate(found):
            colour = colours["second" if one.rule.kind == "finder" else "first" if one.rule.kind == "free" else "line"]
            axes.hlines(i, 100 * min(one.full, one.lora), 100 * max(one.full, one.lora), color=colour, linewidth=2)
            axes.plot([100 * one.mean], [i], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(found)), [one.rule.name for one in found])
        axes.set_xlabel("lost of the possible gain, %: mean, and full / LoRA", color=colours["text"], fontsize=8)

    return draw_in_themes(folder, "rates", (7.2, 4.0), draw_rules)
