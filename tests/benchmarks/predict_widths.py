"""By what factor the intervals of predicted critical rates would hold 80%, by group, and how often a judgement of them
would end well; for `predict_grid.py --widths`."""

import itertools
import math
import random
import statistics
from collections import defaultdict

import torch
from scipy.stats import beta, binomtest

from lightning_sft.sweep.prediction.widths import group_of
from tests.benchmarks.predict_cells import SCHEDULES

#: the quantile that factors are: under that of .80, units left out of the calibration held in fewer than .80 of cells
LEVEL = 0.81
#: where a cell names its unit: what comes next is another architecture, schedule or optimizer class
UNIT = {"Adam": 1, "SGD": 1, "Adam, scheduled": 4, "SGD, scheduled": 4, "other": 3}
#: the same by block
KEPT_ASIDE = {"architectures": 1, "schedules": 4, "optimizers": 3}


def group_of_cell(cell, optimizers):
    """Return the group that a cell is calibrated in, as the tool tells it."""
    make, steps = optimizers[cell[3]], cell[5]
    return group_of(make([torch.nn.Parameter(torch.ones(2, 2))]), [SCHEDULES[cell[4]](t, steps) for t in range(steps)])


def covers(line):
    """Return whether the interval holds the critical rate."""
    return line["low"] <= line["critical"] <= line["high"]


def interval(hits, count):
    """Return the Clopper-Pearson interval of a share."""
    low = float(beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def holm(p_values):
    """Return Holm's adjusted p values of named ones."""
    ordered, worst, adjusted = sorted(p_values, key=p_values.get), 0.0, {}
    for rank, name in enumerate(ordered):
        worst = max(worst, min(1.0, p_values[name] * (len(ordered) - rank)))
        adjusted[name] = worst
    return adjusted


def rejected(blocks):
    """Return the blocks of cells whose coverage differs from .80 after Holm's correction, with their p values."""
    tested = {name: [x for x in own if x["critical"] and x["predicted"]] for name, own in blocks.items()}
    raw = {n: binomtest(sum(map(covers, own)), len(own), 0.8).pvalue for n, own in tested.items() if own}
    return {name: p for name, p in holm(raw).items() if p < 0.05}


def quantile(units, share):
    """Return the smallest score that a share of all scores do not exceed, where each unit weighs the same."""
    weighted = sorted((score, 1 / len(units) / len(own)) for own in units.values() for score in own)
    reached = itertools.accumulate(weight for _, weight in weighted)
    return next(score for (score, _), sum_ in zip(weighted, reached, strict=True) if sum_ >= share - 1e-9)


def scored(lines, optimizers):
    """Return (cell, group, |error| / half-width) of each cell that has a rate and a prediction."""
    found = []
    for line in lines:
        if line["critical"] and line["predicted"]:
            half = math.log(line["high"] / line["predicted"])
            off = abs(math.log(line["predicted"] / line["critical"]))
            found.append((line["cell"], group_of_cell(line["cell"], optimizers), off / half))
    return found


def by_unit(scores):
    """Return scores by group and unit."""
    groups = defaultdict(lambda: defaultdict(list))
    for cell, group, score in scores:
        groups[group][cell[UNIT[group]].lower()].append(score)  # two packages, one optimizer
    return groups


def widths(lines, optimizers, share=LEVEL):
    """Return, for each group, how many times as wide intervals would hold a share of the cells.

    What comes next is another architecture, another schedule or another optimizer class, so these are the units
    (`UNIT`), and each weighs the same.

    Returns:
        By group: the factor, the number of cells, the number of units, and the mean share held in units left out.
    """
    found = {}
    for group, units in by_unit(scored(lines, optimizers)).items():
        held = []
        for name, own in units.items():
            others = {other: known for other, known in units.items() if other != name}
            held += [statistics.fmean(score <= quantile(others, share) for score in own)] if others else []
        left_out = statistics.fmean(held) if held else math.nan
        found[group] = quantile(units, share), sum(map(len, units.values())), len(units), left_out
    return found


def rehearsed(lines, optimizers, share=LEVEL, times=400):
    """Return how often half of the architectures, schedules and classes meet what is asked, judged by the others.

    What is asked: the Clopper-Pearson interval of the pooled share contains .80, and no block is rejected.
    """
    scores, good, draw = scored(lines, optimizers), 0, random.Random(0)
    names = defaultdict(set)
    for cell, _, _ in scores:
        names[cell[0]].add(cell[KEPT_ASIDE[cell[0]]].lower())
    for _ in range(times):
        aside = {block: set(draw.sample(sorted(own), len(own) // 2)) for block, own in names.items()}
        apart = [[], []]
        for score in scores:
            block = score[0][0]
            apart[score[0][KEPT_ASIDE[block]].lower() in aside[block]].append(score)
        factors = {group: quantile(units, share) for group, units in by_unit(apart[0]).items()}
        held = defaultdict(list)
        for cell, group, score in apart[1]:
            held[cell[0]].append(score <= factors[group])
        pooled = list(itertools.chain(*held.values()))
        low, high = interval(sum(pooled), len(pooled))
        p_values = holm({block: binomtest(sum(own), len(own), 0.8).pvalue for block, own in held.items()})
        good += low <= 0.8 <= high and min(p_values.values()) >= 0.05
    return good / times
