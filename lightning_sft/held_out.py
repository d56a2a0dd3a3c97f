"""How many held-out rows verdicts need, how many of a file to hold out, and why two readings of them may part."""

from __future__ import annotations

from collections.abc import Mapping

#: fewer rows than this give no interval, and no verdict: a bootstrap of them is far too narrow
MIN_ROWS = 8
#: of the training rows, what a start holds out, and the most of them that are held out to have `MIN_ROWS`
SHARE, MOST = 0.05, 0.2
#: from so many rows on, the share alone holds out enough
ENOUGH = round(MIN_ROWS / SHARE)


def too_few(rows: int) -> str:
    """Return in a sentence that a set has fewer rows than verdicts on it need; empty where it has enough.

    Args:
        rows: of the set.
    """
    if rows >= MIN_ROWS:
        return ""
    return f"{rows} row{'s' * (rows != 1)}: intervals and verdicts on silent failure need at least {MIN_ROWS}"


def split_of(rows: int | None) -> tuple[float | int, str]:
    """Return what ``data.val_split`` should be, and why.

    Args:
        rows: training rows, counted up to `ENOUGH`; None where they are not known.
    """
    plain = "a share of the training rows, or a number of them"
    if rows is None or rows >= ENOUGH:
        return SHARE, f"{plain}; verdicts need at least {MIN_ROWS}"
    most = max(1, int(MOST * rows))
    if most >= MIN_ROWS:
        return MIN_ROWS, f"{plain}; verdicts need at least {MIN_ROWS}, and {SHARE:.0%} of {rows} would be fewer"
    return most, (
        f"{plain}; verdicts need at least {MIN_ROWS}, and {rows} row{'s' * (rows != 1)} are too few to spare them: "
        "add rows, or give others by data.val"
    )


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
