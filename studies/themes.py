"""Studies' figures, on light and on dark pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sft.files import replacing
from lightning_sft.sweep.intervals import interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEMES = {
    "light": {"text": "#2b333b", "line": "#9aa3ad", "second": "#b5452c", "first": "#1b7f5c"},
    "dark": {"text": "#d5dbe1", "line": "#5b6673", "second": "#f08a6c", "first": "#5cc79f"},
}
#: arm, mean, ends of its 95% interval, in percent
Bar = tuple[str, float, float, float]


def draw_in_themes(
    folder: Path, study: str, size: tuple[float, float], draw: Callable[[Figure, Mapping[str, str]], None]
) -> list[Path]:
    """Write a figure for each theme; returns its files, named by their theme.

    Args:
        folder: of figures.
        study: its name; the ids inside the files follow from it, so that the same figure is the same file.
        size: width and height, inches.
        draw: draws into the figure, in the colours of a theme.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    files = []
    for theme, colours in THEMES.items():
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure, colours)
        for axes in figure.axes:
            axes.tick_params(colors=colours["text"], labelsize=8)
            for side, spine in axes.spines.items():
                spine.set_visible(side in ("left", "bottom"))
                spine.set_color(colours["line"])
        path = folder / f"{theme}.svg"
        with matplotlib.rc_context({"svg.hashsalt": study, "svg.fonttype": "none"}), replacing(path) as partial:
            figure.savefig(partial, format="svg", transparent=True, metadata={"Date": None})
        files.append(path)
    return files


def bars_of(shares: Mapping[str, Sequence[float]]) -> list[Bar]:
    """Return each arm with the mean of its shares and the ends of its interval over replicates.

    The intervals are of single arms; arms are paired, so their differences in a table are known better.

    Args:
        shares: arm -> one a replicate, two or more.
    """
    found = []
    for arm, row in shares.items():
        one = interval(list(row))
        assert one.low is not None
        assert one.high is not None
        found.append((arm, 100 * one.mean, 100 * one.low, 100 * one.high))
    return found


def draw_bars(axes: Axes, bars: Sequence[Bar], colour_of: Callable[[str], str]) -> None:
    """Draw one line an arm, the first on top.

    Args:
        axes: to draw into.
        bars: of the arms.
        colour_of: returns the colour of an arm.
    """
    for i, (arm, mean, low, high) in enumerate(reversed(bars)):
        axes.hlines(i, low, high, color=colour_of(arm), linewidth=2)
        axes.plot([mean], [i], "o", color=colour_of(arm), markersize=6)
    axes.set_yticks(range(len(bars)), [arm for arm, *_ in reversed(bars)])
