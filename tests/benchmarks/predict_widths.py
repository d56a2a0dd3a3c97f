"""By what factor the intervals of predicted critical rates would hold 80%, by group; for `predict_grid.py --widths`."""

import itertools
import math
import statistics
from collections import defaultdict

import torch

from lightning_sft.sweep.prediction.widths import group_of
from tests.benchmarks.predict_cells import SCHEDULES


def group_of_cell(cell, optimizers):
    """Return the group that a cell is calibrated in, as the tool tells it."""
    make, steps = optimizers[cell[3]], cell[5]
    return group_of(make([torch.nn.Parameter(torch.ones(2, 2))]), [SCHEDULES[cell[4]](t, steps) for t in range(steps)])


def quantile(units, share):
    """Return the smallest score that a share of all scores do not exceed, where each unit weighs the same."""
    weighted = sorted((score, 1 / len(units) / len(own)) for own in units.values() for score in own)
    reached = itertools.accumulate(weight for _, weight in weighted)
    return next(score for (score, _), sum_ in zip(weighted, reached, strict=True) if sum_ >= share - 1e-9)


def widths(lines, optimizers, share=0.8):
    """Return, for each group, how many times as wide intervals would hold a share of the cells.

    What comes next is another architecture, another schedule or another optimizer class, so these are the units, and
    each weighs the same: architectures in the group ``plain``, schedules in ``scheduled``, optimizers in ``other``.

    Returns:
        By group: the factor, the number of cells, the number of units, and the mean share held in units left out.
    """
    place, scores = {"plain": 1, "scheduled": 4, "other": 3}, defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["critical"] and line["predicted"]:
            group = group_of_cell(line["cell"], optimizers)
            half = math.log(line["high"] / line["predicted"])
            off = abs(math.log(line["predicted"] / line["critical"]))
            scores[group][line["cell"][place[group]].lower()].append(off / half)  # two packages, one optimizer
    found = {}
    for group, units in scores.items():
        held = []
        for name, own in units.items():
            others = {other: known for other, known in units.items() if other != name}
            held += [statistics.fmean(score <= quantile(others, share) for score in own)] if others else []
        left_out = statistics.fmean(held) if held else math.nan
        found[group] = quantile(units, share), sum(map(len, units.values())), len(units), left_out
    return found
