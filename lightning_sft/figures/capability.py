"""A capability reading drawn: before the first step, and after the fit beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_sft.figures.style import new_figure, styled, theme
from lightning_sft.metrics.capability_reading import MIDDLE, STRONG, WEAK, CapabilityReading, GroupReading, Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def capability_figure(start: CapabilityReading, end: CapabilityReading | None = None) -> Figure:
    """Return four panels: the place on the continuum, histograms of p and of log10 p, and quantiles of p and entropy.

    All are of the tokens by which the place is judged: without special tokens, where there are others.

    Args:
        start: before the first optimizer step.
        end: of the same tokens after the fit; None before it.
    """
    figure, colours = new_figure(7.4, 6.6), theme()
    panels = figure.subplot_mosaic([["place"] * 2, ["p", "p"], ["log", "quantiles"]], height_ratios=[0.75, 1.5, 1.5])
    readings = [("before", start.judged)] + ([] if end is None else [("after", end.judged)])
    tokens = "tokens that are not special" if start.leaves_out else "tokens"
    _continuum(panels["place"], start, readings)
    for (name, group), colour in zip(readings, (colours.first, colours.second), strict=False):
        _steps(panels["p"], group.p_histogram, colour, f"{name}: mean {group.mean_p:.2g}")
        _steps(panels["log"], group.log10_p_histogram, colour, name)
        at = [float(quantile.rstrip("%")) for quantile in group.p_quantiles]
        panels["quantiles"].plot(at, list(group.p_quantiles.values()), color=colour, label=f"p, {name}")
        nats = list(group.entropy_quantiles.values())
        panels["quantiles"].plot(at, nats, color=colour, linestyle="--", linewidth=1.4, label=f"entropy, {name}")
    panels["p"].set(xlabel="p: probability of the right token", ylabel="share of tokens", xlim=(0, 1))
    panels["p"].legend(loc="upper center", ncols=2)
    # one scale for both histograms: bars of one height are as many tokens
    top = max(axes.get_ylim()[1] for axes in (panels["p"], panels["log"]))
    for axes in (panels["p"], panels["log"]):
        axes.set_ylim(0, top)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panels["log"].set(xlabel="log10 p (first bin: all below)", ylabel="share of tokens")
    panels["quantiles"].set(xlabel=f"% of the {tokens}", ylabel="p; entropy in nats")
    panels["quantiles"].set_ylim(top=1.5 * panels["quantiles"].get_ylim()[1])  # room for the legend
    panels["quantiles"].legend(fontsize=9, ncols=2, loc="upper left", columnspacing=1, handlelength=1.5)
    return figure


def _continuum(axes: Axes, start: CapabilityReading, readings: list[tuple[str, GroupReading]]) -> None:
    colours = theme()
    cuts = start.cut_offs
    bounds = (0.0, cuts.weak, cuts.strong, 1.0)
    words = zip(bounds, bounds[1:], (WEAK, MIDDLE, STRONG), (colours.bad, colours.open, colours.good),
                strict=False)  # fmt: skip
    for low, high, word, colour in words:
        axes.axvspan(low, high, color=colour, alpha=0.16, linewidth=0)
        axes.text((low + high) / 2, 1.0, word, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                  fontsize=10.5, color=colours.soft)  # fmt: skip
    for place, ((name, group), colour) in enumerate(zip(readings, (colours.first, colours.second), strict=False)):
        low, high = group.mean_p_interval or (group.mean_p, group.mean_p)
        axes.plot([low, high], [place, place], color=colour, linewidth=6, alpha=0.4, solid_capstyle="butt")
        axes.plot([group.mean_p], [place], "o", color=colour, markersize=9)
        at, shift, side = (high, 8, "left") if high < 0.8 else (low, -8, "right")
        axes.annotate(f"{name} {group.mean_p:.2g}", (at, place), xytext=(shift, 0), textcoords="offset points",
                      va="center", ha=side, fontsize=10.5)  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(len(readings) - 0.4, -0.6), yticks=[])
    axes.grid(visible=False)
    without = ", special tokens left out" if start.leaves_out else ""
    axes.set_xlabel(f"mean p of the right token{without}, 95% interval over rows", fontsize=10.5)


def _steps(axes: Axes, histogram: Histogram, colour: str, label: str) -> None:
    total = max(sum(histogram.counts), 1)
    shares = [count / total for count in histogram.counts]
    axes.stairs(shares, histogram.edges, color=colour, fill=True, alpha=0.25)
    axes.stairs(shares, histogram.edges, color=colour, linewidth=2, label=label)
