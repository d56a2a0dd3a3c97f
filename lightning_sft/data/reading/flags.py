"""What a row or a message says about its own training. All such keys are read here, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_sft.data.codes import Code
from lightning_sft.data.types import BadRowError

SWITCHES = ("train", "loss")
"""Keys that are true or false: our own, and ms-swift's."""
WEIGHTS = ("weight", "loss_weight", "loss_scale")
"""Keys that are numbers: OpenAI's, LLaMA-Factory's and ms-swift's."""
FLAG_KEYS = (*SWITCHES, *WEIGHTS)


def message_flag(message: Mapping[str, Any], at: str) -> bool | None:
    """Return whether a message's own keys say that it is trained; None where they say nothing.

    Args:
        message: the message, with whatever keys it has.
        at: its place, for messages.

    Raises:
        BadRowError: a key holds something else than all or nothing, or two keys disagree.
    """
    found = {key: _flag(key, message[key], at) for key in FLAG_KEYS if message.get(key) is not None}
    if len(set(found.values())) > 1:
        raise BadRowError(f"{at}: {' and '.join(found)} disagree on whether it is trained; keep one", Code.WEIGHT)
    return next(iter(found.values()), None)


def check_row(row: Mapping[str, Any]) -> None:
    """Look at what a row says about itself as a whole.

    Raises:
        BadRowError: it is not to be trained, or asks for a weight of its own.
    """
    if row.get("label") is False:
        raise BadRowError("label is false: the answer is one not to learn, so the row is left out", Code.UNWANTED)
    for key in FLAG_KEYS:
        if row.get(key) is None or (key in SWITCHES and not isinstance(row[key], bool)):
            continue
        if not _flag(key, row[key], "the row"):
            raise BadRowError(f"the row says {key}: {row[key]!r}, so that nothing of it is trained", Code.UNWANTED)


def _flag(key: str, value: object, at: str) -> bool:
    if key in SWITCHES:
        if not isinstance(value, bool):
            raise BadRowError(f"{at}: {key} must be true or false, got {value!r}", Code.WEIGHT)
        return value
    try:
        weight = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        weight = -1.0
    if weight not in (0.0, 1.0):
        raise BadRowError(
            f"{at}: {key} must be 0 or 1, got {value!r}: other weights of the loss are not supported. Round it, or "
            "rename the key if it means something else.",
            Code.WEIGHT,
        )
    return bool(weight)
