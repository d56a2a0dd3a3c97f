"""The exact interval of a share of tokens that come in rows: it has a width where all tokens came out alike."""

from __future__ import annotations


def exact_interval(hits: float, tokens: int, rows: int) -> tuple[float, float]:
    """Return the 95% interval of hits / tokens by Korn and Graubard (1998), the National Center for Health Statistics'.

    It is Clopper and Pearson's for fewer tokens than there are: their number times (t with tokens - 1 degrees of
    freedom / t with rows - 1) squared, t being the 97.5% quantiles of Student's distribution. By how much the tokens of
    a row depend on each other (the design effect) is taken to be 1, as if they were independent: from tokens that are
    all alike it cannot be estimated. So the interval may be too narrow, but never has no width.

    Args:
        hits: tokens that count, 0 to ``tokens``.
        tokens: of all rows.
        rows: that hold them, from 2 to ``tokens``.

    >>> "{:.3f} {:.3f}".format(*exact_interval(0, 18, 8))
    '0.000 0.227'
    """
    from scipy.special import betaincinv, stdtrit  # half a second that only a reading needs

    worth = tokens * float(stdtrit(tokens - 1, 0.975) / stdtrit(rows - 1, 0.975)) ** 2
    found = worth * hits / tokens
    low = float(betaincinv(found, worth - found + 1, 0.025)) if hits > 0 else 0.0
    high = float(betaincinv(found + 1, worth - found, 0.975)) if hits < tokens else 1.0
    return low, high


def no_narrower(bounds: tuple[float, float], hits: float, tokens: int, rows: int) -> tuple[float, float]:
    """Return a bootstrap interval over rows, widened to hold the exact one.

    A bootstrap of tokens that are nearly all alike is too narrow as well: 1 of 60 would seem surer than 0 of 60. Where
    tokens of a row depend on each other, the bootstrap is the wider one.

    Args:
        bounds: of the bootstrap.
        hits: see `exact_interval`.
        tokens: see `exact_interval`.
        rows: see `exact_interval`.
    """
    low, high = exact_interval(hits, tokens, rows)
    return min(bounds[0], low), max(bounds[1], high)
