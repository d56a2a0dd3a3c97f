"""Searches on functions with known answers."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_sft.errors import UserError
from lightning_sft.sweep.search import crossing, find_crossing, geometric_grid, most_trials, rates_to_try
from lightning_sft.sweep.suggest import smoothed, suggest


def test_grid_has_equal_ratios_and_its_ends() -> None:
    grid = geometric_grid(1e-7, 1e-5, 9)
    assert (grid[0], grid[-1], len(grid)) == (1e-7, 1e-5, 9)
    assert [b / a for a, b in pairwise(grid)] == pytest.approx([100 ** (1 / 8)] * 8, rel=1e-9)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (1.0, math.inf)])
def test_bad_bounds_are_named(low: float, high: float) -> None:
    with pytest.raises(UserError, match=f"low={low} to high={high}"):
        geometric_grid(low, high, 5)


def one_by_one(passes: Callable[[float], bool]) -> Callable[[Sequence[float]], dict[float, bool]]:
    return lambda rates: {rate: passes(rate) for rate in rates}


@given(st.floats(2e-6, 0.9), st.floats(1e-5, 0.5), st.integers(2, 9))
def test_bisection_reaches_its_resolution(edge: float, resolution: float, points: int) -> None:
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate >= edge

    grid = geometric_grid(1e-6, 1.0, points)
    found = find_crossing(one_by_one(passes), grid, resolution)
    assert abs(len(tried) - most_trials(grid, resolution)) <= 1  # rates are rounded
    assert found.status == "found"
    assert found.lower < edge <= found.upper <= found.lower * (1 + resolution)
    assert not found.relapses
    assert len(set(tried)) == len(tried) == len(found.outcomes)
    halvings = math.log2(math.log(1e6 ** (1 / (points - 1))) / math.log1p(resolution))
    assert len(tried) <= points + max(0, math.ceil(halvings)) + 1


@given(st.floats(2e-6, 0.9), st.floats(1e-4, 0.5), st.integers(1, 8))
def test_workers_split_a_bracket_into_one_part_more_than_they_are(edge: float, resolution: float, workers: int) -> None:
    grid, rounds = [1e-6, 1.0], []

    def passes(rates: Sequence[float]) -> dict[float, bool]:
        rounds.append(list(rates))
        return {rate: rate >= edge for rate in rates}

    found = find_crossing(passes, grid, resolution, workers)
    assert found.lower < edge <= found.upper <= found.lower * (1 + resolution)
    assert all(len(rates) <= workers for rates in rounds[1:]), "nobody has two trials while another has none"
    needed = math.log(math.log(1e6) / math.log1p(resolution)) / math.log(workers + 1)
    assert len(rounds) - 1 <= math.ceil(needed - 1e-6) + 1, "the bracket shrinks by workers + 1 in each round"


def test_parts_are_equal_and_no_more_than_the_resolution_needs() -> None:
    outcomes = {1.0: False, 1000.0: True}
    assert rates_to_try(outcomes, [1.0, 1000.0], 0.02, workers=2) == [10.0, 100.0]
    assert rates_to_try(outcomes, [1.0, 30.0, 1000.0], 0.02, workers=2) == [30.0], "the grid comes first"
    assert len(rates_to_try({1.0: False, 1.05: True}, [1.0, 1.05], 0.02, workers=8)) == 2
    assert rates_to_try({1.0: False, 1.01: True}, [1.0, 1.01], 0.02, workers=8) == []
    assert rates_to_try({1.0: True, 2.0: True}, [1.0, 2.0], 0.02, workers=3) == []


def test_never_and_always_are_answers() -> None:
    grid = geometric_grid(1e-3, 1.0, 4)
    never, always = (find_crossing(one_by_one(lambda _, o=outcome: o), grid, 0.02) for outcome in (False, True))
    assert (never.status, never.lower, never.upper) == ("never", 1.0, None)
    assert (always.status, always.lower, always.upper) == ("below", None, 1e-3)


def test_the_smallest_crossing_is_taken_and_relapses_are_told() -> None:
    found = find_crossing(one_by_one(lambda rate: 0.02 < rate < 0.2 or rate > 0.9), geometric_grid(1e-3, 1.0, 7), 0.01)
    assert found.lower <= 0.02 < found.upper <= found.lower * 1.01
    assert found.relapses
    assert all(0.2 <= rate <= 0.9 for rate in found.relapses)
    assert crossing({1.0: True, 2.0: False}).relapses == [2.0]


def test_suggestions_of_a_parabola() -> None:
    rates = geometric_grid(1e-5, 1.0, 101)
    losses = [3 + (math.log10(rate) + 2) ** 2 / 4 for rate in rates]
    found = suggest(rates, losses)
    assert found.minimum_tenth == pytest.approx(1e-3, rel=1e-6)
    assert found.steepest == rates[1], "the parabola falls most where it begins"
    assert found.valley == pytest.approx(1e-3, rel=0.1), "two thirds from 1e-5 to 1e-2"
    assert found.edge is None, "it never rises far above its minimum"


def test_the_edge_lies_between_the_last_fall_and_the_first_rise() -> None:
    found = suggest([1.0, 2.0, 4.0, 8.0, 16.0], [5.0, 4.0, 1.0, 6.0, math.nan])
    assert found.edge == pytest.approx(math.sqrt(4.0 * 8.0))
    assert suggest([1.0, 2.0], [1.0, math.nan]).values() == {}, "too short to say anything"
    assert suggest([1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 3.0, 4.0]).steepest is None, "it only rises"


def test_smoothing_has_no_bias_towards_zero() -> None:
    assert smoothed([2.0] * 5, 0.9) == pytest.approx([2.0] * 5)
    assert smoothed([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.5 * 1 * 0.5 + 0.5 * 3) / 0.75])
