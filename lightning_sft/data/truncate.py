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
        first: id of the begin token; where the row begins with it, it stays when the beginning is cut.
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
        if first is not None and row.ids[0] == first and max_length > 1:
            kept[0] = 0
    if how == "keep_completion" and row.trained.sum() != row.trained[kept].sum():
        return None
    if row.trained.any() and not row.trained[kept].any():
        return None
    return Encoded(row.ids[kept], row.trained[kept])
