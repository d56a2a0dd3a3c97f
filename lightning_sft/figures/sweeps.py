"""Figures of sweeps, drawn without a display."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import TYPE_CHECKING

from lightning_sft.sweep.compare import Comparison
from lightning_sft.sweep.results import CriticalRate, RangeTest, SweepResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


@singledispatch
def sweep_figure(result: SweepResult) -> Figure:
    """Return a sweep's result as a matplotlib figure.

    Raises:
        TypeError: no figure is known for this kind of result.
    """
    raise TypeError(f"There is no figure of a {type(result).__name__}.")


@sweep_figure.register(RangeTest)
def range_figure(result: RangeTest) -> Figure:
    """Return the loss over the rate with the suggestions as vertical lines."""
    figure, axes = _figure(7, 4)
    axes.plot(result.rates, result.losses, color="lightgrey", label=result.reads)
    axes.plot(result.rates, result.smoothed, color="black", label="smoothed")
    for colour, (name, rate) in zip(COLOURS, result.suggestions.values().items(), strict=False):
        axes.axvline(rate, color=colour, linestyle="--", linewidth=1, label=f"{name.replace('_', ' ')} {rate:.3g}")
    finite = [loss for loss in result.losses if math.isfinite(loss)]
    if finite:
        low, start = min(finite), finite[0]
        axes.set_ylim(low - 0.1 * abs(start - low) - 1e-9, start + 0.5 * abs(start - low) + 1e-9)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss after the step (nats per token)")
    axes.legend(fontsize=8)
    return figure


@sweep_figure.register(CriticalRate)
def critical_figure(result: CriticalRate) -> Figure:
    """Return the share of crossed probes over the rate, with the bracket and the probes' own rates."""
    figure, axes = _figure(7, 4)
    for crossed, colour, label in ((True, "tab:green", "crossed"), (False, "tab:red", "not crossed")):
        some = [t for t in result.trials if t.crossed == crossed]
        axes.scatter([t.lr for t in some], [t.share for t in some], color=colour, s=18, label=label, zorder=3)
    axes.axhline(result.quantile, color="grey", linewidth=0.6)
    if result.lower is not None and result.upper is not None:
        axes.axvspan(result.lower, result.upper, color="tab:blue", alpha=0.4, label="bracket")
    for probe in result.probes:
        if probe.upper is not None and probe.lower is not None:
            axes.axvline(probe.upper, ymax=0.04, color="black", linewidth=0.8)
    if result.trials:
        axes.set_xscale("log")
    axes.set_ylim(-0.05, 1.05)
    axes.set_xlabel("learning rate (short lines: single probes)")
    axes.set_ylabel(f"share of probes as the trial ended: {result.criterion}, {result.steps_allowed} steps")
    axes.legend(fontsize=8)
    return figure


@sweep_figure.register(Comparison)
def comparison_figure(result: Comparison) -> Figure:
    """Return the selection metric over the learning rate, one curve per objective, with dots at the chosen rates."""
    figure, axes = _figure(7, 4)
    key = result.report.score.key
    for arm in result.report.arms:
        shown = [(lr, value) for lr, value in arm.search if value is not None]
        (line,) = axes.plot([lr for lr, _ in shown], [value for _, value in shown], label=arm.name, linewidth=1)
        chosen = [(lr, value) for lr, value in shown if lr == arm.rate]
        axes.plot([lr for lr, _ in chosen], [value for _, value in chosen], "o", color=line.get_color())
    axes.axhline(result.report.start[key], color="grey", linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (dots: chosen; grey: before any step)")
    axes.set_ylabel(f"{key} after {result.budget} steps")
    axes.legend(fontsize=8)
    return figure
