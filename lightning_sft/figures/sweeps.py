"""Figures of sweeps, drawn without a display."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import TYPE_CHECKING

from lightning_sft.figures.style import new_figure, note, styled, theme
from lightning_sft.sweep.compare import Comparison
from lightning_sft.sweep.results import CriticalRate, RangeTest, SweepResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: a predicted rate with its interval
Predicted = tuple[float, float, float] | None


@singledispatch
def sweep_figure(result: SweepResult, predicted: Predicted = None) -> Figure:
    """Return a sweep's result as a matplotlib figure.

    Args:
        result: of the sweep.
        predicted: rate, lower and upper end of its interval, as they were predicted before the trials.

    Raises:
        TypeError: no figure is known for this kind of result.
    """
    raise TypeError(f"There is no figure of a {type(result).__name__}.")


@sweep_figure.register(RangeTest)
@styled
def range_figure(result: RangeTest, predicted: Predicted = None) -> Figure:
    """Return the loss over the rate, the band of rates worth a run shaded, and what each rule suggests written out."""
    figure, colours = new_figure(6.8, 4.2), theme()
    axes = figure.subplots()
    axes.plot(result.rates, result.losses, color=colours.open, linewidth=1, label="each step")
    axes.plot(result.rates, result.smoothed, color=colours.first, linewidth=2.6, label="smoothed")
    finite = [loss for loss in result.losses if math.isfinite(loss)]
    if finite:
        low, start = min(finite), finite[0]
        room = abs(start - low)
        axes.set_ylim(low - 0.1 * room - 1e-9, start + 0.6 * room + 1e-9)
    axes.set_xscale("log")
    if result.rates:
        axes.set_xlim(result.rates[0], result.rates[-1])
    suggested = result.suggestions.values()
    good = [rate for name, rate in suggested.items() if name != "edge"]
    if len(good) > 1:
        axes.axvspan(min(good), max(good), color=colours.good, alpha=0.18, linewidth=0)
    for line, (name, rate) in enumerate(sorted(suggested.items(), key=lambda item: item[1])):
        colour = colours.bad if name == "edge" else colours.good
        words = {"edge": "too high from", "minimum_tenth": "minimum / 10"}.get(name, name)
        note(axes, rate, f"{words} {rate:.2g}", colour, line)
    chosen = result.chosen()
    took = (
        "no rate is suggested" if chosen is None else f"{result.choice.replace('_', ' ')}, {chosen:.2g}, is the choice"
    )
    axes.set_title(f"Range test: {took}")
    axes.set_xlabel("learning rate (shaded: worth a run)")
    axes.set_ylabel(
        f"{result.reads}, nats per token" if "NLL" in result.reads else "loss after the step, nats per token"
    )
    axes.legend(loc="lower left")
    return figure


@sweep_figure.register(CriticalRate)
@styled
def critical_figure(result: CriticalRate, predicted: Predicted = None) -> Figure:
    """Return the share of crossed probes over the rate, with bracket and prediction, and the probes' own rates."""
    figure, colours = new_figure(6.8, 4.2), theme()
    axes = figure.subplots()
    for crossed, colour, marker, label in ((True, colours.good, "o", "enough crossed"),
                                           (False, colours.bad, "X", "not enough")):  # fmt: skip
        some = [t for t in result.trials if t.crossed == crossed]
        axes.scatter([t.lr for t in some], [t.share for t in some], color=colour, marker=marker, s=60, label=label,
                     zorder=3)  # fmt: skip
    axes.axhline(result.quantile, color=colours.soft, linewidth=1, linestyle=(0, (4, 3)))
    if result.trials:
        axes.set_xscale("log")
        rates = [t.lr for t in result.trials] + ([] if predicted is None else [predicted[1], predicted[2]])
        axes.set_xlim(min(rates) / 1.5, max(rates) * 1.5)
        axes.text(axes.get_xlim()[1], result.quantile, f"{result.quantile:.0%} must cross", ha="right", va="bottom",
                  color=colours.soft, fontsize=10)  # fmt: skip
    if result.lower is not None and result.upper is not None:
        axes.axvspan(result.lower, result.upper, color=colours.first, alpha=0.3, label="bracket: the critical rate")
    for probe in result.probes:
        if probe.upper is not None and probe.lower is not None:
            axes.axvline(probe.upper, ymax=0.05, color=colours.ink, linewidth=1.2)
    axes.set_ylim(-0.05, 1.3)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
    if predicted is not None:
        rate, low, high = predicted
        axes.axvspan(low, high, color=colours.third, alpha=0.3, label="predicted before, 80% interval")
        note(axes, rate, f"predicted {rate:.2g}", colours.third, 1)
    if result.critical is not None:
        note(axes, result.critical, f"found {result.critical:.2g}", colours.first)
    words = {"found": f"Critical rate {result.critical or 0:.3g}", "already": "Crossed before any step",
             "never": "Crossed at no rate that was tried", "below": "Crossed at every rate that was tried"}  # fmt: skip
    axes.set_title(words[result.status])
    axes.set_xlabel("learning rate (short lines: single probes)")
    what = f"probes with {result.criterion}" if result.reads_probes else result.criterion
    axes.set_ylabel(f"{what}\nwithin {result.steps_allowed} steps")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


@sweep_figure.register(Comparison)
@styled
def comparison_figure(result: Comparison, predicted: Predicted = None) -> Figure:
    """Return the selection metric over the learning rate, one curve per objective, with dots at the chosen rates."""
    figure, colours = new_figure(6.8, 4.2), theme()
    axes = figure.subplots()
    key = result.report.score.key
    styles = ("-", "--", "-.", ":")
    for number, arm in enumerate(result.report.arms):
        shown = [(lr, value) for lr, value in arm.search if value is not None]
        style = styles[number // len(colours.cycle) % len(styles)]
        (line,) = axes.plot([lr for lr, _ in shown], [value for _, value in shown], style, label=arm.name)
        chosen = [(lr, value) for lr, value in shown if lr == arm.rate]
        axes.plot([lr for lr, _ in chosen], [value for _, value in chosen], "o", markersize=9, color=line.get_color())
    axes.axhline(result.report.start[key], color=colours.soft, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xscale("log")
    axes.set_title(f"{key} after {result.budget} steps, {'more' if result.report.score.higher else 'less'} is better")
    axes.set_xlabel("learning rate (dots: chosen; dashed: before any step)")
    axes.set_ylabel(key)
    figure.legend(loc="outside lower center", ncols=2)
    return figure
