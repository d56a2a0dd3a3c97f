"""Replays: all steps of a run by its own optimizer, with gradients computed at a few of them and interpolated between.

Along the way of a run a gradient changes smoothly. The optimizer, its moments, the schedule and weight decay do not
need to be modelled, then: they take every step themselves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lightning_sft.sweep.prediction.estimate import Target

#: gradients of all trained parameters; None where one got none
Gradients = list[Tensor | None]
#: a field is not followed further beyond its last node than this share of its length
_BEYOND = 0.5
_TINY = 1e-30


@dataclass
class Field:
    """Gradients along a way, by the distance of the weights from their start.

    Attributes:
        nodes: distance and gradients, in the order of distance.
    """

    nodes: list[tuple[float, Gradients]] = field(default_factory=list)

    def add(self, distance: float, gradients: Gradients) -> None:
        """Add a node."""
        self.nodes.append((distance, gradients))
        self.nodes.sort(key=lambda node: node[0])

    def weights(self, distance: float) -> list[tuple[float, Gradients]]:
        """Return the nodes that a distance lies between, each with its share: Lagrange's parabola through three."""
        at = [node for node, _ in self.nodes]
        above = next((i for i, node in enumerate(at) if node >= distance), len(at) - 1)
        first = min(max(above - 1, 0), max(len(at) - 3, 0))
        chosen = range(first, min(first + 3, len(at)))
        distance = min(distance, at[-1] + _BEYOND * (at[-1] - at[0]))
        shares = []
        for i in chosen:
            share = 1.0
            for j in chosen:
                if j != i:
                    share *= (distance - at[j]) / (at[i] - at[j])
            shares.append((share, self.nodes[i][1]))
        return shares


@dataclass(frozen=True)
class Replay:
    """What a replay has read.

    Attributes:
        rate: the peak rate.
        progress: where the gaps were read, the start first, (readings,), at a peak rate of 1 (`Target.way`).
        gaps: at these, (readings, probes).
        way: distance of the weights from their start, before the first step and after each, (steps + 1,).
        surprise: the largest relative error of a carried-on gradient, where a true one took its place.
        kept: gradients that were computed, by the step before which.
        behind: how far the last computed gradient lies behind, as a share of all progress: the mean over the progress
            of all steps, and the mean of the square; 0 where every step has its own.
    """

    rate: float
    progress: list[float]
    gaps: list[list[float]]
    way: list[float]
    surprise: float = 0.0
    kept: dict[int, Gradients] = field(default_factory=dict)
    behind: tuple[float, float] = (0.0, 0.0)


class Steerable(Protocol):
    """Protocol: a model whose gradients are computed where they are asked for, and that is moved by any others."""

    def begin(self) -> None:
        """Go back to the start, with an optimizer without memory."""

    def gradients(self) -> tuple[list[float], Gradients]:
        """Return gaps and gradients here, (probes,)."""

    def gaps(self) -> list[float]:
        """Return the gaps here, (probes,)."""

    def move(self, gradients: Gradients, rate: float) -> None:
        """Take one step of the optimizer on given gradients."""

    def distance(self) -> float:
        """Return how far the weights are from their start."""


def replay(
    model: Steerable,
    rate: float,
    target: Target,
    nodes: Mapping[int, Gradients | None],
    known: Field,
    keep: Collection[int] = (),
) -> Replay:
    """Take all steps of a run, with true gradients before the steps ``nodes`` and carried on between them.

    Between two nodes the gradient is that of ``known`` at the same distance, corrected by how far off that was at the
    last node.

    Args:
        model: what is moved; it is left at the end of the run.
        rate: the peak rate.
        target: the run.
        nodes: steps before which gradients are computed, from 0 on, or those that an earlier replay at the same rate
            has computed there; the first step's are those of ``known``.
        known: gradients along a shorter run from the same start, at distance 0 too.
        keep: steps whose computed gradients are kept.
    """
    model.begin()
    along, gaps, way = target.way, [model.gaps()], [0.0]
    last, surprise, kept, taken = (0.0, known.nodes[0][1]), 0.0, {}, [0]
    for step, share in enumerate(target.shares):
        here = way[-1]
        gradients = last[1]
        if here != last[0]:
            parts = [*known.weights(here), (1.0, last[1]), *((-w, g) for w, g in known.weights(last[0]))]
            gradients = combined(parts)
        if step and step in nodes:
            given = nodes[step]
            read, own = model.gradients() if given is None else (model.gaps(), given)
            if step in keep:
                kept[step] = own
            surprise = max(surprise, length(combined([(1.0, gradients), (-1.0, own)])) / max(length(own), _TINY))
            last, gradients = (here, own), own
            taken.append(step)
            gaps.append(read)
        model.move(gradients, rate * share)
        way.append(model.distance())
    gaps.append(model.gaps())
    progress = [along[step] for step in (*taken, len(target.shares))]
    return Replay(rate, progress, gaps, way, surprise, kept, _behind(along, taken))


def _behind(along: Sequence[float], taken: Sequence[int]) -> tuple[float, float]:
    """Return how far gradients lie behind that were computed before some steps: the mean, and that of the square.

    Args:
        along: progress before the first step and after each, (steps + 1,).
        taken: the steps, in rising order, from 0 on.
    """
    first = second = 0.0
    for begin, end in itertools.pairwise((*taken, len(along) - 1)):
        for step in range(begin, end):
            part, back = (along[step + 1] - along[step]) / along[-1], (along[step] - along[begin]) / along[-1]
            first, second = first + part * back, second + part * back**2
    return first, second


@torch.no_grad()
def length(gradients: Gradients) -> float:
    """Return the Euclidean norm over all parameters."""
    return math.hypot(*(float(torch.linalg.vector_norm(g.float())) for g in gradients if g is not None))


@torch.no_grad()
def combined(parts: Sequence[tuple[float, Gradients]]) -> Gradients:
    """Return the weighted sum of gradients; a parameter without one in any part has none."""
    total: Gradients = []
    for of_parameter in zip(*(gradients for _, gradients in parts), strict=True):
        sum_: Tensor | None = None
        for (weight, _), gradient in zip(parts, of_parameter, strict=True):
            if gradient is not None:
                sum_ = gradient * weight if sum_ is None else sum_.add_(gradient, alpha=weight)
        total.append(sum_)
    return total


def spread_nodes(way: Sequence[float], count: int) -> set[int]:
    """Return steps that part a way into ``count`` pieces of about equal length, without its start.

    Args:
        way: how far the run is before its first step and after each, (steps + 1,).
        count: pieces.
    """
    inner = range(1, len(way) - 1)
    return {min(inner, key=lambda step: abs(way[step] - way[-1] * i / count)) for i in range(1, count) if inner}
