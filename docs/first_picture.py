"""Draws the picture of the home page, light and dark, from readings of two real runs: a silent failure, and its cure.

The readings are those of configs/experiment/silent_failure.yaml with ``every_n_steps: 1``, at its own learning rate and
at a higher one; docs/assets/silent_failure.json says on which model and processor.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_sft.figures import style

ASSETS = Path(__file__).resolve().parent / "assets"
READINGS = ASSETS / "silent_failure.json"
#: what became of each rate, as the title of its column
TITLES = {"2e-07": "Silent failure: learning rate 2e-7", "6e-06": "What helped: learning rate 6e-6"}


def flip_step(run: dict[str, Any]) -> int | None:
    """Return the first step from which the right word stays ahead of the other; None if it never does."""
    behind = [s for s, c, k in zip(run["step"], run["p_correct"], run["p_competitor"], strict=True) if c <= k]
    first = max(behind, default=-1) + 1
    return first if first <= run["step"][-1] else None


@style.styled
def draw(told: dict[str, Any]) -> Figure:
    """Return the picture: a column for each rate, the right word's loss above, both words' probabilities below."""
    figure = style.new_figure(9.0, 5.2)
    grid = figure.subplots(2, len(told["rates"]), sharex=True, sharey="row", height_ratios=(1, 1.5))
    for (above, below), (rate, run) in zip(grid.T, told["rates"].items(), strict=True):
        _loss(above, run)
        above.set_title(TITLES[rate])
        _probabilities(below, run, told["correct"], told["competitor"])
    grid[0, 0].set_ylim(0, None)
    grid[0, 0].set_ylabel(f"loss of\n“{told['correct']}”")
    grid[1, 0].set_ylabel("probability")
    figure.suptitle(f"The row: “{told['context']} {told['correct']}.”", fontweight="normal")
    return figure


def _loss(axes: Axes, run: dict[str, Any]) -> None:
    axes.plot(run["step"], run["loss"], color=style.theme().soft)
    fall = f"falls from {run['loss'][0]:.2f} to {run['loss'][-1]:.2f} nats"
    axes.annotate(fall, (0.97, 0.6), xycoords="axes fraction", ha="right", va="center")


def _probabilities(axes: Axes, run: dict[str, Any], correct: str, competitor: str) -> None:
    colours = style.theme()
    for key, word, colour in (("p_correct", correct, colours.first), ("p_competitor", competitor, colours.second)):
        axes.plot(run["step"], run[key], color=colour)
        axes.annotate(word, (run["step"][-1], run[key][-1]), xytext=(0, 6), textcoords="offset points", ha="right",
                      va="bottom", color=colour, fontweight="bold")  # fmt: skip
    axes.set_xlabel("optimizer step")
    axes.set_ylim(0, 1)
    axes.set_xticks(range(0, run["step"][-1] + 1, 5))
    step = flip_step(run)
    if step is None:
        axes.annotate(f"“{competitor}” stays ahead of “{correct}”", (0.5, 0.75), xycoords="axes fraction", ha="center",
                      va="center", color=colours.bad)  # fmt: skip
    else:
        style.note(axes, step, f"“{correct}” overtakes at step {step}", colours.good)


def main() -> None:
    """Write both pictures."""
    told = json.loads(READINGS.read_text(encoding="utf-8"))
    for theme in ("light", "dark"):
        os.environ[style.SETTING] = theme
        with mpl.rc_context({"svg.hashsalt": "first picture", "svg.fonttype": "none", "font.family": "sans-serif"}):
            draw(told).savefig(ASSETS / f"silent_failure_{theme}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
