"""Checks of constructor arguments, with one wording."""

from __future__ import annotations

import math

from lightning_sft.errors import UserError


def in_range(
    owner: object,
    name: str,
    value: float,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """Return ``value`` as a float if it is finite and in [low, high], without the ends that are open.

    Raises:
        UserError: it is not; the message names the class, the argument and the allowed values.
    """
    if (
        math.isfinite(value)
        and low <= value <= high
        and not ((open_low and value == low) or (open_high and value == high))
    ):
        return float(value)
    allowed = f"a finite number {'>' if open_low else '>='} {low:g}" + (
        f" and {'<' if open_high else '<='} {high:g}" if high < math.inf else ""
    )
    raise UserError(f"{type(owner).__name__} got {name}={value}. Allowed: {allowed}.")
