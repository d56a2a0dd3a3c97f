"""A capability reading drawn: before the first step, and after the fit beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_sft.metrics.capability_reading import CapabilityReading, GroupReading, Histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: before and after
_COLOURS = ("tab:blue", "tab:orange")


def capability_figure(start: CapabilityReading, end: CapabilityReading | None = None) -> Figure:
    """Return three panels: histograms of p, of log10 p, and quantiles of p and entropy.

    Args:
        start: before the first optimizer step.
        end: of the same tokens after the fit; None before it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    linear, log, quantiles = figure.subplots(1, 3)
    other = quantiles.twinx()
    readings = [("before the fit", start.all)] + ([] if end is None else [("after", end.all)])
    for (name, group), colour in zip(readings, _COLOURS, strict=False):
        label = f"{name}: mean p {group.mean_p:.3f}"
        _steps(linear, group.p_histogram, colour, label)
        _steps(log, group.log10_p_histogram, colour, label)
        linear.axvline(group.mean_p, color=colour, linestyle="--", linewidth=1)
        _lines(quantiles, other, group, colour, name)
    for cut in (start.cut_offs.weak, start.cut_offs.strong):
        linear.axvline(cut, color="grey", linestyle=":", linewidth=1)
    linear.set_xlabel("p of the target (dashed: mean; dotted: cut-offs of ours)")
    log.set_xlabel("log10 p (the first bin holds all below)")
    for axes in (linear, log):
        axes.set_ylabel("share of supervised tokens")
        axes.legend(fontsize=8)
    quantiles.set_xlabel("per cent of the tokens")
    quantiles.set_ylabel("p (solid)")
    quantiles.set_ylim(-0.02, 1.02)
    other.set_ylabel("entropy in nats (dashed)")
    quantiles.legend(fontsize=8)
    return figure


def _steps(axes: Axes, histogram: Histogram, colour: str, label: str) -> None:
    total = max(sum(histogram.counts), 1)
    shares = [count / total for count in histogram.counts]
    axes.stairs(shares, histogram.edges, color=colour, fill=True, alpha=0.25)
    axes.stairs(shares, histogram.edges, color=colour, label=label)


def _lines(axes: Axes, other: Axes, group: GroupReading, colour: str, name: str) -> None:
    at = [float(quantile.rstrip("%")) for quantile in group.p_quantiles]
    axes.plot(at, list(group.p_quantiles.values()), color=colour, marker=".", label=name)
    other.plot(at, list(group.entropy_quantiles.values()), color=colour, linestyle="--", linewidth=1)
