"""Means over the sequences of a micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_means(values: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of ``values`` over each sequence that has a token.

    Args:
        values: (tokens,).
        row: sequence of each token, (tokens,), any ids.

    Returns:
        The means, (sequences,), and the place of each token's sequence among them, (tokens,), int64.
    """
    ids, place = torch.unique(row, return_inverse=True)
    sums = values.new_zeros(len(ids)).index_add(0, place, values)
    sizes = values.new_zeros(len(ids)).index_add(0, place, torch.ones_like(values))
    return sums / sizes, place
