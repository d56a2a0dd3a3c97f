"""Length grouping: batches of rows of similar length, drawn at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_sft.data.indices import Indices

POOL = 50
"""Batches that are sorted together: the more, the less padding, and the less random what shares a batch."""


def group_by_length(order: Indices, lengths: NDArray[np.int64], batch_size: int, random: np.random.Generator) -> None:
    """Rearrange a permutation, in place, so that each batch holds rows of similar length.

    Stretches of the permutation, `POOL` batches each (fewer in small sets, so that there are at least four), are
    sorted by length and cut into batches; then the batches of all stretches are shuffled. Rows that do not fill a
    batch come last, whatever their length.

    Args:
        order: (rows,) row indices in random order; a row may come more than once.
        lengths: tokens of each row, by its index.
        batch_size: rows of a batch, over all ranks.
        random: draws the order of the batches.
    """
    batches = len(order) // batch_size
    whole = order[: batches * batch_size]
    pool = max(1, min(POOL, batches // 4)) * batch_size
    for start in range(0, len(whole), pool):
        stretch = whole[start : start + pool]
        stretch[:] = stretch[np.argsort(lengths[stretch], kind="stable")]
    grouped = whole.reshape(batches, batch_size)
    grouped[:] = grouped[random.permutation(batches)]
