"""One look for all figures, light or dark, that is still read where TensorBoard shows a figure small."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec

from lightning_sft.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
#: ``light`` or ``dark``
SETTING = "LIGHTNING_SFT_FIGURES"


@dataclass(frozen=True)
class Theme:
    """Colours; those of data are told apart without red and green, on paper and on screens (after Okabe and Ito).

    Attributes:
        page, ink, soft, line: background, text, less important text, grid.
        first, second, third: of data, in this order.
        good, bad, open: of outcomes: what was hoped for, what was not, what is undecided.
    """

    page: str
    ink: str
    soft: str
    line: str
    first: str
    second: str
    third: str
    good: str
    bad: str
    open: str

    @property
    def cycle(self) -> tuple[str, ...]:
        """Colours of curves, in their order."""
        return (self.first, self.second, self.third, self.soft, self.ink)


LIGHT = Theme(
    "#ffffff", "#1d2733", "#5b6875", "#dde3e8", "#0072b2", "#d55e00", "#a0569b", "#00795a", "#c04a00", "#7d8b99"
)
DARK = Theme(
    "#1b2128", "#e4e9ee", "#a3afbb", "#39434e", "#56b4e9", "#f0923e", "#d79bd2", "#3fc29a", "#f0923e", "#a3afbb"
)


def theme() -> Theme:
    """Return the theme that the environment asks for.

    Raises:
        UserError: it names another one.
    """
    asked = os.environ.get(SETTING, "light")
    themes = {"light": LIGHT, "dark": DARK}
    if asked not in themes:
        raise UserError(f"{SETTING} is {asked!r} in the environment. Allowed: light, dark.")
    return themes[asked]


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Return a function whose figure has the look of all."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib as mpl

        with mpl.rc_context(_settings(theme())):
            return draw(*args, **kwargs)

    return inner


def _settings(colours: Theme) -> Any:  # matplotlib types its keys one by one, in some versions
    from matplotlib.rcsetup import cycler

    return {
        "font.size": 12.0,
        "axes.titlesize": 12.0,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 11.5,
        "xtick.labelsize": 11.0,
        "ytick.labelsize": 11.0,
        "legend.fontsize": 10.5,
        "legend.frameon": False,
        "figure.titlesize": 13.0,
        "figure.facecolor": colours.page,
        "axes.facecolor": colours.page,
        "savefig.facecolor": colours.page,
        "text.color": colours.ink,
        "axes.labelcolor": colours.ink,
        "axes.edgecolor": colours.soft,
        "xtick.color": colours.soft,
        "ytick.color": colours.soft,
        "xtick.labelcolor": colours.ink,
        "ytick.labelcolor": colours.ink,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": colours.line,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 2.0,
        "axes.prop_cycle": cycler(color=colours.cycle),
        "figure.dpi": 100.0,
    }


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that needs no display; sizes in inches of 100 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def note(axes: Axes, x: float, text: str, colour: str, line: int = 0) -> None:
    """Mark a place on the x axis by a dotted line, and write beside it what it is.

    Args:
        axes: to draw in.
        x: the place.
        text: what it is.
        colour: of both.
        line: how many notes stand above this one.
    """
    low, high = axes.get_xlim()
    scale = axes.get_xaxis().get_transform().transform
    a, b, c = (float(scale(v)) for v in (low, high, x))
    right = (c - a) > 0.6 * (b - a)
    axes.axvline(x, color=colour, linestyle=(0, (2, 2)), linewidth=1.4)
    axes.annotate(text, (x, 1.0), xycoords=("data", "axes fraction"), xytext=(-5 if right else 5, -3 - 15 * line),
                  textcoords="offset points", ha="right" if right else "left", va="top", color=colour,
                  fontsize=10.5, bbox={"facecolor": theme().page, "edgecolor": "none", "alpha": 0.85, "pad": 1.0},
                  zorder=4)  # fmt: skip
