"""How far a mean over tokens may be off: a bootstrap over rows, since the tokens of one row depend on each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEED = 0
#: numbers that are held at a time
_AT_A_TIME = 2_000_000


def row_bootstrap(
    numerators: NDArray[np.float64], denominator: NDArray[np.float64], resamples: int
) -> list[tuple[float, float]]:
    """Return the 95% interval of sum(numerator) / sum(denominator) of each quantity, by percentiles.

    Rows are resampled whole, with a fixed seed of its own: nothing is drawn from a global random stream, and the same
    rows give the same interval. Where all rows agree it is a single point, which is too narrow; a share is
    then widened by `no_narrower`.

    Args:
        numerators: (quantities, rows).
        denominator: (rows,), above 0.
        resamples: how many.
    """
    from scipy.stats import bootstrap  # a second that only a reading needs

    def mean(total: NDArray[np.float64], tokens: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
        ratio: NDArray[np.float64] = total.sum(axis=axis) / tokens.sum(axis=axis)
        return ratio

    found = bootstrap(
        (numerators, np.broadcast_to(denominator, numerators.shape)),
        mean,
        paired=True,
        vectorized=True,
        axis=-1,
        n_resamples=resamples,
        batch=max(1, _AT_A_TIME // numerators.size),
        method="percentile",  # the others leave rows out one by one, which takes rows^2 numbers
        random_state=np.random.default_rng(SEED),
    ).confidence_interval
    return [(float(low), float(high)) for low, high in zip(found.low, found.high, strict=True)]
