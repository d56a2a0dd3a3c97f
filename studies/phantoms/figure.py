"""The figure of the page: which contexts flipped and which failed silently, by arm, for light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_sft.compare.result import RunResult
from lightning_sft.files import replacing
from lightning_sft.sweep.intervals import interval
from studies.cells import Cell
from studies.findings import judged, scores
from studies.phantoms.arms import FULL
from studies.phantoms.design import FLIPPED, SILENT, STAGES
from studies.themes import THEMES

#: arm, mean, ends of its 95% interval, in percent
Bar = tuple[str, float, float, float]
#: what is drawn: stage, log key, words
PANELS = (
    ("confirmatory", FLIPPED, "answers alone: flipped, %"),
    ("confirmatory", SILENT, "answers alone: silent failure, %"),
    ("mixed", SILENT, "among sentences: silent failure, %"),
)


def bars(cells: Sequence[Cell], stage_name: str, key: str) -> list[Bar]:
    """Return each arm of a stage with its share and interval over replicates; [] before the stage is complete.

    In a run that diverged nothing flipped, and nothing failed silently: its loss rose.
    """
    stage = STAGES[stage_name]
    runs: dict[str, dict[int, RunResult]] = judged(cells, stage.name, stage.blocks[0].name)
    if any(len(runs.get(arm, {})) < stage.replicates for arm in stage.arms):
        return []
    found = []
    for arm in stage.arms:
        one = interval(list(scores(runs, arm, key).values()))
        assert one.low is not None
        assert one.high is not None
        found.append((arm, 100 * one.mean, 100 * one.low, 100 * one.high))
    return found


def draw(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write the figure for each theme, where any stage is complete; returns its files.

    Args:
        cells: of the study.
        folder: of figures.
    """
    panels = [(words, found) for stage, key, words in PANELS if (found := bars(cells, stage, key))]
    if not panels:
        return []
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    files = []
    for theme, colours in THEMES.items():
        figure = Figure(figsize=(7.2, 2.4), layout="constrained")
        FigureCanvasSVG(figure)
        drawn = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (words, found) in zip(drawn, panels, strict=True):
            for i, (arm, mean, low, high) in enumerate(reversed(found)):
                colour = colours["second" if arm == FULL else "first"]
                axes.hlines(i, low, high, color=colour, linewidth=2)
                axes.plot([mean], [i], "o", color=colour, markersize=6)
            axes.set_yticks(range(len(found)), [arm for arm, *_ in reversed(found)])
            axes.set_xlabel(words, color=colours["text"], fontsize=8)
            axes.tick_params(colors=colours["text"], labelsize=8)
            for side, spine in axes.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(colours["line"])
        path = folder / f"{theme}.svg"
        with matplotlib.rc_context({"svg.hashsalt": "phantoms", "svg.fonttype": "none"}), replacing(path) as partial:
            figure.savefig(partial, format="svg", transparent=True, metadata={"Date": None})
        files.append(path)
    return files
