"""How many held-out rows verdicts need, and how many of a file to hold out."""

from __future__ import annotations

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
