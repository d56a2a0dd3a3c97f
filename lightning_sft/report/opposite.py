"""Why the mean p and the mean NLL of the same tokens may move in opposite directions, as a line below a table."""

from __future__ import annotations

from collections.abc import Mapping

#: changes below this are shown as none in tables
_SHOWN = 5e-4


def why_opposite(before: Mapping[str, float], after: Mapping[str, float], prefix: str = "val/") -> str | None:
    """Return a line where one of the two says better and the other worse; None where they agree, or one is missing.

    Args:
        before: readings by log key.
        after: the same later.
        prefix: of their keys ``nll`` and ``mean_p``.

    >>> why_opposite({"val/nll": 4.0, "val/mean_p": 0.3}, {"val/nll": 2.0, "val/mean_p": 0.4})
    """
    names = f"{prefix}nll", f"{prefix}mean_p"
    if not all(name in readings for name in names for readings in (before, after)):
        return None
    nll, p = (after[name] - before[name] for name in names)
    if nll < -_SHOWN and p < -_SHOWN:
        return (
            f"{names[1]} fell although {names[0]} fell: fewer tokens are nearly impossible now, which is what the NLL "
            "goes by, and some likely ones are less likely, which is what the mean of p goes by."
        )
    if nll > _SHOWN and p > _SHOWN:
        return (
            f"{names[1]} rose although {names[0]} rose: likely tokens are likelier now, which is what the mean of p "
            "goes by, and more tokens are nearly impossible, which is what the NLL goes by."
        )
    return None
