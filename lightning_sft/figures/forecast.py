"""The figure of a forecast: each probe's step with its interval, and where it was seen to flip."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_sft.figures.style import new_figure, styled, theme
from lightning_sft.figures.sweeps import Predicted, sweep_figure
from lightning_sft.sweep.forecast.result import Forecast

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@sweep_figure.register(Forecast)
@styled
def forecast_figure(result: Forecast, predicted: Predicted = None) -> Figure:
    """Return steps on the x axis, a line a probe; crosses where it was seen to flip. Rates have no place here."""
    figure, colours = new_figure(7, 1.5 + 0.25 * len(result.probes)), theme()
    axes = figure.subplots()
    for line, of in enumerate(result.probes):
        if of.step is not None and of.low is not None and of.high is not None:
            axes.plot([of.low, of.high], [line, line], color=colours.first, linewidth=2)
            axes.plot([of.step], [line], marker="o", color=colours.first, label="forecast, 80% interval")
        if result.seen and (seen := result.seen[line]) is not None:
            axes.plot([seen], [line], marker="x", linestyle="", color=colours.second, label="seen")
    axes.axvline(result.end, color=colours.open, linestyle="--", linewidth=1, label="end of the run")
    axes.set_yticks(range(len(result.probes)), [p.probe for p in result.probes], fontsize=7)
    axes.set_xlabel("optimizer step of the flip")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=8)
    return figure
