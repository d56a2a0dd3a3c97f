"""Figures of the probe callbacks, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_sft.figures.style import Theme, new_figure, note, styled, theme
from lightning_sft.probes.history import ProbeHistory
from lightning_sft.probes.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
MOST = 24  # probes in one figure of curves; more would be unreadable
#: of jumps, by whether they are phantom: how they are marked, and what that means
_MARKERS = {
    True: ("X", "phantom: embeddings stood still"),
    False: ("^", "embeddings moved"),
    None: ("o", "cause unknown"),
}


def can_show(trainer: Trainer) -> bool:
    """Return whether this rank has a logger that takes figures."""
    takers = (isinstance(logger, TensorBoardLogger) or hasattr(logger, "log_image") for logger in trainer.loggers)
    return trainer.is_global_zero and any(takers)


@styled
def rank_heat_map(steps: Sequence[int], ranks: Sequence[Sequence[float]], names: Sequence[str]) -> Figure:
    """Return a heat map of the correct tokens' ranks, probe x reading, with the first and the last written out.

    Args:
        steps: optimizer step of each reading.
        ranks: a list a reading, in it one rank a probe.
        names: of the probes.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter

    figure = new_figure(7.2, 1.9 + 0.3 * len(names))
    axes = figure.subplots()
    axes.grid(visible=False)
    image = axes.imshow(
        [list(row) for row in zip(*ranks, strict=True)],
        aspect="auto",
        interpolation="nearest",
        cmap="cividis_r",
        norm=LogNorm(vmin=1, vmax=max(2.0, max(map(max, ranks)))),
    )
    axes.set_yticks(range(len(names)), names)
    shown = range(0, len(steps), max(1, -(-len(steps) // 8)))
    axes.set_xticks(list(shown), [str(steps[i]) for i in shown])
    axes.set_xlabel("optimizer step")
    ends = axes.secondary_yaxis("right")
    texts = [f"{a:,.0f} \u2192 {b:,.0f}" for a, b in zip(ranks[0], ranks[-1], strict=True)]
    ends.set_yticks(range(len(names)), texts)
    ends.tick_params(length=0)
    first = sum(rank < 1.5 for rank in ranks[-1])
    axes.set_title(f"Rank of the right word: {first} of {len(names)} end on top")
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=50, pad=0.03)
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    bar.set_label("rank in the vocabulary (1 = the model's first choice)")
    return figure


@styled
def order_curves(histories: Mapping[str, ProbeHistory], verdicts: Mapping[str, Verdict]) -> Figure:
    """Return the curves of Phi, S and D over the steps, a panel a probe, with verdicts, flips and jumps written out.

    Args:
        histories: by probe name; the first ``MOST`` are drawn.
        verdicts: by probe name.
    """
    shown = list(histories.items())[:MOST]
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure = new_figure(max(3.4 * columns, 6.4), 1.3 + 2.5 * lines)
    colours = theme()
    # one scale for all: panels are there to be compared
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, history) in zip(panels.flat, shown, strict=False):
        axes.axhline(0, color=colours.soft, linewidth=1)
        axes.plot(history.step, history.signal, color=colours.first, linewidth=1.6, label="S commitment")
        axes.plot(history.step, history.drag, color=colours.second, linewidth=1.6, label="D drag of other words")
        axes.plot(history.step, history.phi, color=colours.ink, linewidth=2.4, label="Phi = S + D: above 0 it wins")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if name in verdicts:
            _verdict(axes, name, verdicts[name], history, colours)
        else:
            axes.set_title(name)
    low, high = panels.flat[0].get_ylim()
    panels.flat[0].set_ylim(low - 0.22 * (high - low), high + 0.15 * (high - low))  # room for what is written
    for axes in panels[:, 0]:
        axes.set_ylabel("overlap")
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=3)
    figure.supxlabel("optimizer step", fontsize=11.5)
    return figure


def _verdict(axes: Axes, name: str, verdict: Verdict, history: ProbeHistory, colours: Theme) -> None:
    won = verdict.outcome in ("flipped", "never behind")
    colour = colours.good if won else colours.bad if verdict.outcome in ("failed", "diverged") else colours.soft
    axes.set_title(f"{name}\n{verdict.title}", color=colour, fontsize=11)
    if verdict.flip_step is not None and verdict.flip_step > history.step[0]:
        note(axes, verdict.flip_step, f"flips at {verdict.flip_step}", colours.good)
    for jump in verdict.jumps:
        phi = history.phi[history.step.index(jump.step)]
        axes.plot([jump.step], [phi], _MARKERS[jump.phantom][0], color=colours.third, markersize=8, zorder=5)
    if verdict.jumps:
        largest = max(verdict.jumps, key=lambda jump: abs(jump.size))
        count = "1 jump" if len(verdict.jumps) == 1 else f"{len(verdict.jumps)} jumps, largest"
        words = f"{count} {largest.size:+.2f} at {largest.step}\n{_MARKERS[largest.phantom][1]}"
        axes.text(0.03, 0.03, words, transform=axes.transAxes, va="bottom", fontsize=9.5, color=colours.third)
