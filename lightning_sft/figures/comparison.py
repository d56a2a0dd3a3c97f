"""A comparison as a forest plot: each arm's difference from the first, with its interval, a panel a reading."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lightning_sft.compare.keys import Score, heading_of, score_of
from lightning_sft.compare.report import ArmReport, Report
from lightning_sft.figures.style import new_figure, styled, theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: the most panels beside each other
PANELS = 4


@styled
def forest_figure(report: Report) -> Figure:
    """Return the figure; the judged reading stands first. Filled dots: the difference holds at 5% over all arms."""
    others = report.arms[1:]
    keys = [key for key in report.keys if any(_known(arm, key) for arm in others)][:PANELS]
    figure = new_figure(2.2 + 2.7 * max(len(keys), 1), 1.5 + 0.42 * len(others))
    panels = figure.subplots(1, max(len(keys), 1), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=False):
        _panel(axes, report, others, key)
    panels[0].set_yticks(range(len(others)), [arm.name for arm in others])
    panels[0].set_ylim(len(others) - 0.4, -0.6)
    figure.suptitle(f"Difference from {report.arms[0].name}, {report.replicates} replicates, 95% intervals")
    return figure


def _panel(axes: Axes, report: Report, others: list[ArmReport], key: str) -> None:
    score = report.score if key == report.score.key else score_of(key)
    scale = 100 if score.share else 1
    for place, arm in enumerate(others):
        if not _known(arm, key):
            continue
        contrast = arm.readings[key].against_first
        assert contrast is not None
        difference = contrast.difference
        colour = {"better": theme().good, "worse": theme().bad}.get(contrast.verdict, theme().open)
        if difference.low is not None and difference.high is not None:
            axes.plot([scale * difference.low, scale * difference.high], [place, place], color=colour, linewidth=1.6)
        face = theme().page if contrast.verdict == "undecided" else colour
        axes.plot([scale * difference.mean], [place], "o", color=colour, markerfacecolor=face, markersize=6)
    axes.axvline(0, color=theme().soft, linewidth=0.8, zorder=0)
    for place in range(len(others)):
        axes.axhline(place, color=theme().line, linewidth=0.8, zorder=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(heading_of(key))
    axes.set_xlabel(f"difference{_in_unit(score)}, {'more' if score.higher else 'less'} is better")


def _in_unit(score: Score) -> str:
    """Return the unit of a difference as an axis says it; empty for one that has none."""
    if score.share:
        return " in points"
    return " in nats per token" if score.key.endswith(("nll", "kl")) else ""


def _known(arm: ArmReport, key: str) -> bool:
    reading = arm.readings.get(key)
    return reading is not None and reading.against_first is not None and math.isfinite(reading.mean.mean)
