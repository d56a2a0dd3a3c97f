"""Digests of the rows of a set, by which leaks between sets are found, and a set is known again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lightning_sft.data.indices import PIECE
from lightning_sft.data.spool import pieces

ROW, PROMPT = slice(16), slice(16, 32)
"""The digest of a row, and that of its prompt."""


def standing_in(rows: NDArray[np.uint8], earlier: Sequence[NDArray[np.uint8]], part: slice) -> NDArray[np.bool_]:
    """Return which rows stand in one of several earlier sets.

    Memory grows with ``rows``, usually those of a small validation set, and not with the earlier sets.

    Args:
        rows: (rows, 32) digests.
        earlier: the same of the earlier sets.
        part: `ROW` or `PROMPT`, by which rows are compared.

    Returns:
        (rows,) whether each does.
    """
    if not earlier:
        return np.zeros(len(rows), np.bool_)
    own = _words(rows[:, part])
    beginnings = np.unique(own[:, 0])
    found: set[tuple[int, int]] = set()
    for known in earlier:
        for piece in pieces(len(known), PIECE):
            words = _words(known[piece, part])
            alike = words[np.isin(words[:, 0], beginnings)]  # few: by half of the digest
            found.update(map(tuple, alike.tolist()))
    result = np.zeros(len(rows), np.bool_)
    if found:
        result[:] = [tuple(words) in found for words in own.tolist()]
    return result


def _words(digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return digests of 16 bytes as two numbers each, (rows, 2)."""
    return np.ascontiguousarray(digests).view(np.uint64)


def fingerprint(keys: NDArray[np.uint8], kept: NDArray[np.int64]) -> str:
    """Return a digest of some rows of a set in their order.

    Args:
        keys: (rows, 32) digests of the rows.
        kept: indices of the rows in question.
    """
    state = hashlib.blake2b(digest_size=16)
    for piece in pieces(len(kept), PIECE):
        state.update(keys[kept[piece], ROW].tobytes())
    return state.hexdigest()
