"""Figures of the probe callbacks, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_sft.probes.history import Jump, ProbeHistory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
MOST = 24  # probes in one figure of curves; more would be unreadable


def can_show(trainer: Trainer) -> bool:
    """Return whether this rank has a logger that takes figures."""
    takers = (isinstance(logger, TensorBoardLogger) or hasattr(logger, "log_image") for logger in trainer.loggers)
    return trainer.is_global_zero and any(takers)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def rank_heat_map(steps: Sequence[int], ranks: Sequence[Sequence[float]], names: Sequence[str]) -> Figure:
    """Return a heat map of the correct tokens' ranks, probe x reading, on a logarithmic scale.

    Args:
        steps: optimizer step of each reading.
        ranks: a list a reading, in it one rank a probe.
        names: of the probes.
    """
    from matplotlib.colors import LogNorm

    figure = _figure(8, 1.5 + 0.22 * len(names))
    axes = figure.subplots()
    image = axes.imshow(
        [list(row) for row in zip(*ranks, strict=True)],
        aspect="auto",
        interpolation="nearest",
        cmap="viridis_r",
        norm=LogNorm(vmin=1, vmax=max(2.0, max(map(max, ranks)))),
    )
    axes.set_yticks(range(len(names)), names, fontsize=7)
    shown = range(0, len(steps), max(1, len(steps) // 10))
    axes.set_xticks(list(shown), [str(steps[i]) for i in shown])
    axes.set_xlabel("optimizer step")
    figure.colorbar(image, ax=axes, label="rank of the correct token (1 = top)")
    return figure


def order_curves(histories: Mapping[str, ProbeHistory], jumps: Mapping[str, Sequence[Jump]]) -> Figure:
    """Return the curves of S, D and Phi over the steps, a panel a probe, with jumps marked.

    Args:
        histories: by probe name; the first ``MOST`` are drawn.
        jumps: by probe name. Red: phantom; green: the embeddings took part; grey: unknown.
    """
    shown = list(histories.items())[:MOST]
    columns = min(COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure = _figure(3.2 * columns, 0.6 + 2.2 * lines)
    panels = figure.subplots(lines, columns, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, (name, history) in zip(panels.flat, shown, strict=False):
        axes.axhline(0, color="black", linewidth=0.5)
        for values, label in ((history.signal, "S"), (history.drag, "D"), (history.phi, "Phi")):
            axes.plot(history.step, values, label=label, linewidth=1.2)
        for jump in jumps.get(name, ()):
            colour = {True: "tab:red", False: "tab:green", None: "grey"}[jump.phantom]
            axes.axvline(jump.step, color=colour, linestyle=":", linewidth=1)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels.flat[0].legend(fontsize=7)
    figure.supxlabel("optimizer step; dotted: jump (red: phantom, green: embeddings took part)", fontsize=8)
    return figure
