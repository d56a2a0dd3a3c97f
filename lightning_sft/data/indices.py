"""Rows of a set by their indices, in little memory: a few bytes a row are much where there are millions of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lightning_sft.data.spool import GrowingArray, pieces

S = TypeVar("S", bound=np.generic)

Indices = NDArray[np.signedinteger[Any]]
"""Indices of rows, in four bytes each where there are no more than two billion."""
PIECE = 1 << 15
"""Rows that are looked at together."""


def empty_indices(size: int, rows: int) -> Indices:
    """Return room for indices.

    Args:
        size: how many.
        rows: rows of the set that they point into.
    """
    return np.empty(size, np.int32 if rows <= np.iinfo(np.int32).max else np.int64)


def shuffled_indices(rows: int, random: np.random.Generator) -> Indices:
    """Return ``random.permutation(rows)``, the same numbers from the same draws in half the memory."""
    order = empty_indices(rows, rows)
    count_up(order)
    random.shuffle(order)
    return order


def count_up(indices: Indices, first: int = 0) -> None:
    """Write ``first``, ``first + 1``, ... into an array, without a second one of its size."""
    for piece in pieces(len(indices), PIECE):
        indices[piece] = np.arange(first + piece.start, first + piece.stop)


def where(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the indices of the rows that are true, in a temporary file where they are many."""
    at = GrowingArray(np.int64)
    for piece in pieces(len(chosen), PIECE):
        at.extend(np.flatnonzero(chosen[piece]) + piece.start)
    return at.finish()


def taken(array: NDArray[S], at: NDArray[np.int64]) -> NDArray[S]:
    """Return ``array[at]``, in a temporary file where it is large.

    Args:
        array: (rows, ...) something of each row.
        at: (chosen,) indices.
    """
    grown: GrowingArray[S] = GrowingArray(array.dtype.type)
    for piece in pieces(len(at), PIECE):
        grown.extend(array[at[piece]])
    return grown.finish().reshape(-1, *array.shape[1:])


def stretches(ascending: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Yield each value of an ascending array with where it begins and where it ends; nothing is copied.

    Args:
        ascending: (rows,) such as the source of each row.
    """
    start = 0
    while start < len(ascending):
        value = int(ascending[start])
        end = start + int(np.searchsorted(ascending[start:], value, side="right"))
        yield value, start, end
        start = end
