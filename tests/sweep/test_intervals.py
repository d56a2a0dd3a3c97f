"""Intervals over seeds: their quantiles, their symmetry, and what they hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_sft.sweep.intervals import interval


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40), st.floats(0.1, 10))
def test_it_is_symmetric_and_scales(values: list[float], factor: float) -> None:
    found, scaled = interval(values), interval([factor * v for v in values])
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(found.mean - found.low, abs=1e-6)
    assert scaled.low is not None
    assert scaled.low == pytest.approx(factor * found.low, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("freedom", [1, 2, 5, 29, 30, 31, 200])
def test_quantiles_are_those_of_student(freedom: int, confidence: float) -> None:
    """The distribution's density, integrated numerically to the quantile, gives its share; also beyond 30."""
    values = [(-1.0) ** i for i in range(freedom + 1)]
    found = interval(values, confidence)
    assert found.high is not None
    quantile = (found.high - found.mean) / np.std(values, ddof=1) * math.sqrt(len(values))
    norm = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    # x = sqrt(freedom) * tan(a) turns the density into a power of cos(a), which is smooth over a short range
    edges = np.linspace(0, math.atan(quantile / math.sqrt(freedom)), 20_001)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    share = norm * math.sqrt(freedom) * float((np.cos(middle) ** (freedom - 1)).sum() * width)
    assert 0.5 + share == pytest.approx((1 + confidence) / 2, abs=1e-8)


def test_as_many_intervals_as_promised_hold_the_mean() -> None:
    drawn = np.random.default_rng(0).normal(3.0, 2.0, (4000, 4))
    held = [found.low <= 3.0 <= found.high for found in map(interval, drawn.tolist())]
    assert np.mean(held) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


def test_one_seed_has_no_bounds() -> None:
    assert (interval([1.0]).low, interval([1.0]).high) == (None, None)
    assert str(interval([1.0])) == "1.0000"
    assert interval([1.0, math.nan]).low is None
    assert str(interval([1.0, 2.0, 3.0])) == "2.0000 [-0.4841, 4.4841]"
