"""The figure of the page: how often the right word is ahead in unseen sentences, by arm, for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_sft.files import replacing
from lightning_sft.sweep.intervals import interval
from studies.cells import Cell
from studies.cure.analysis import share_of
from studies.cure.design import CONTROL, CURE, Block, Stage
from studies.findings import judged
from studies.themes import THEMES


def bars(cells: Sequence[Cell], stage: Stage, block: Block) -> list[tuple[str, float, float, float]]:
    """Return each arm of a block with its share and the ends of its 95% interval, in percent; [] before it is complete.

    The intervals are of single arms; arms are paired, so their differences in the table are known better.
    """
    runs = judged(cells, stage.name, block.name)
    if any(len(runs.get(arm, {})) < stage.replicates for arm in stage.arms):
        return []
    found = []
    for arm in stage.arms:
        one = interval(list(share_of(runs, arm).values()))
        assert one.low is not None
        assert one.high is not None
        found.append((arm, 100 * one.mean, 100 * one.low, 100 * one.high))
    return found


def draw(cells: Sequence[Cell], stage: Stage, folder: Path) -> list[Path]:
    """Write the figure for each theme, where any block is complete; returns its files.

    Args:
        cells: of the study.
        stage: that is drawn.
        folder: of figures.
    """
    rows = {block.name: found for block in stage.blocks if (found := bars(cells, stage, block))}
    if not rows:
        return []
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    files = []
    for theme, colours in THEMES.items():
        figure = Figure(figsize=(7.2, 2.8), layout="constrained")
        FigureCanvasSVG(figure)
        panels = figure.subplots(1, len(rows), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, found) in zip(panels, rows.items(), strict=True):
            for i, (arm, mean, low, high) in enumerate(reversed(found)):
                colour = colours["second" if arm == CURE else "line" if arm == CONTROL else "first"]
                axes.hlines(i, low, high, color=colour, linewidth=2)
                axes.plot([mean], [i], "o", color=colour, markersize=6)
            axes.set_yticks(range(len(found)), [arm for arm, *_ in reversed(found)])
            axes.set_title(name, color=colours["text"], fontsize=9)
            axes.set_xlabel("right word ahead, % of unseen sentences", color=colours["text"], fontsize=9)
            axes.tick_params(colors=colours["text"], labelsize=8)
            for side, spine in axes.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(colours["line"])
        path = folder / f"{theme}.svg"
        with matplotlib.rc_context({"svg.hashsalt": "cure", "svg.fonttype": "none"}), replacing(path) as partial:
            figure.savefig(partial, format="svg", transparent=True, metadata={"Date": None})
        files.append(path)
    return files
