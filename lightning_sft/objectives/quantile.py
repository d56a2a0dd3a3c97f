"""A quantile of signed values that adds up over micro-batches and ranks: counts in bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Bins of equal width in asinh(value / SCALE): 1% of a value wide where it is large, 1e-4 nats around 0, which is the
# middle of a bin, so that rounding does not tell equal values apart. What lies beyond REACH nats is in the last bin.
SCALE, REACH, BINS = 1e-2, 1e2, 2001
_WIDTH = 2.0 * math.asinh(REACH / SCALE) / BINS


def counts(values: Tensor) -> Tensor:
    """Return how many of ``values``, (any,), lie in each bin, (bins,), in their dtype."""
    place = ((values / SCALE).asinh() / _WIDTH + BINS / 2).floor().long().clamp(0, BINS - 1)
    return values.new_zeros(BINS).index_add(0, place, torch.ones_like(values))


def largest_from(counted: Tensor, number: Tensor | float) -> float:
    """Return a value that the ``number`` largest reach, and the next one below does not.

    It lies midway between their bins, so that rounding moves nobody over it. Where both lie in one bin, all of that bin
    reach it; where nothing lies below, it is the lower end of the bin.

    Args:
        counted: sums of `counts`, (bins,).
        number: at least 1 and at most their total.
    """
    place = BINS - 1 - int((counted.flip(0).cumsum(0) < number).sum())
    below = counted[:place].nonzero()
    next_end = _edge(int(below[-1]) + 1) if len(below) else _edge(place)
    return (_edge(place) + next_end) / 2


def _edge(place: int) -> float:
    """Return the lower end of a bin."""
    return SCALE * math.sinh((place - BINS / 2) * _WIDTH)
