"""What a row or a message says about its own training. All such keys are read here, and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_sft.data.codes import Code
from lightning_sft.data.reading.fields import as_list
from lightning_sft.data.types import SPANS, BadRowError, Flag

SWITCHES = ("train", "loss")
"""Keys that are true or false: our own, and ms-swift's."""
WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""Keys that are numbers: OpenAI's, LLaMA-Factory's and ms-swift's."""
FLAG_KEYS = (*SWITCHES, *WEIGHTS)


def message_flag(message: Mapping[str, Any], at: str) -> Flag:
    """Return whether a message's own keys say that it is trained, or with which weight; None where they say nothing.

    Args:
        message: the message, with whatever keys it has.
        at: its place, for messages.

    Raises:
        BadRowError: a key holds something else, or two keys disagree.
    """
    found = _weighed({key: _flag(key, message[key], at) for key in FLAG_KEYS if message.get(key) is not None})
    if len(set(found.values())) > 1:
        raise BadRowError(f"{at}: {' and '.join(found)} disagree on whether it is trained; keep one", Code.WEIGHT)
    return next(iter(found.values()), None)


def message_spans(value: object, content: str, at: str) -> list[list[Any]]:
    """Return the weighted characters of a message, ``[start, end, weight]`` each.

    Raises:
        BadRowError: they are something else, or reach beyond the content.
    """
    spans = []
    for item in as_list(value, f"{SPANS} of {at}"):
        parts = item if isinstance(item, list | tuple) else ()
        start, end, weight = parts if len(parts) == 3 else (None, None, None)
        whole = isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= len(content)
        if not whole or isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise BadRowError(
                f"{at}: {SPANS} must hold [start, end, weight], characters of the content from 0 to {len(content)} and "
                f"a finite weight; got {item!r}",
                Code.WEIGHT,
            )
        spans.append([start, end, float(weight)])
    return spans


def row_weight(row: Mapping[str, Any]) -> float:
    """Return the weight of a whole row's loss, from what it says about itself.

    Raises:
        BadRowError: it is not to be trained, or its weight is no number.
    """
    if row.get("label") is False:
        raise BadRowError("label is false: the answer is one not to learn, so the row is left out", Code.UNWANTED)
    found: dict[str, bool | float] = {}
    for key in FLAG_KEYS:
        if row.get(key) is None or (key in SWITCHES and not isinstance(row[key], bool)):
            continue
        found[key] = _flag(key, row[key], "the row")
        if found[key] == 0:
            raise BadRowError(f"the row says {key}: {row[key]!r}, so that nothing of it is trained", Code.UNWANTED)
    found = _weighed(found)
    if len(set(found.values())) > 1:
        raise BadRowError(f"the row: {' and '.join(found)} disagree on its weight; keep one", Code.WEIGHT)
    return float(next(iter(found.values()), 1.0))


def _weighed(found: dict[str, bool | float]) -> dict[str, bool | float]:
    """Leave a switch that is on to the weight beside it: it says whether, the weight how much."""
    weights = {key: value for key, value in found.items() if key in WEIGHTS and value}
    return {key: value for key, value in found.items() if key in weights or not (weights and value is True)}


def _flag(key: str, value: object, at: str) -> bool | float:
    if key in SWITCHES:
        if not isinstance(value, bool):
            raise BadRowError(f"{at}: {key} must be true or false, got {value!r}", Code.WEIGHT)
        return value
    try:
        weight = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        weight = math.nan
    if not math.isfinite(weight):
        raise BadRowError(
            f"{at}: {key} must be a finite number, the weight of the loss, got {value!r}. Correct it, or rename the "
            "key if it means something else.",
            Code.WEIGHT,
        )
    return bool(weight) if weight in (0.0, 1.0) else weight
