"""Rows longer than ``max_length``."""

from __future__ import annotations

from typing import Literal

import numpy as np

from lightning_sft.data.types import Encoded

Truncation = Literal["error", "drop", "left", "right", "keep_completion"]


def truncate(row: Encoded, max_length: int, how: Truncation, first: int | None = None) -> Encoded | None:
    """Return ``row`` with at most ``max_length`` tokens, or None where it is to be dropped.

    ``right`` keeps the beginning, ``left`` the end; ``keep_completion`` cuts the beginning too, but drops a row rather
    than cut into what is trained. A row without trained tokens after the cut is dropped.

    Args:
        row: a row that may be longer.
        max_length: tokens.
        how: see above; ``error`` is the caller's.
        first: id of the begin token; where the row begins with it and has it once, it stays.
    """
    length = len(row.ids)
    if length <= max_length:
        return row
    if how == "drop":
        return None
    if how == "right":
        kept = np.arange(max_length)
    else:
        kept = np.arange(length - max_length, length)
        # in ChatML the "begin token" opens every turn: only one that stands once begins the row
        if max_length > 1 and row.ids[0] == first and np.count_nonzero(row.ids == first) == 1:
            kept[0] = 0
    if how == "keep_completion" and row.trained.sum() != row.trained[kept].sum():
        return None
    if row.trained.any() and not row.trained[kept].any():
        return None
    weights = None if row.weights is None else row.weights[kept]
    return Encoded(row.ids[kept], row.trained[kept], row.mask, weights)
