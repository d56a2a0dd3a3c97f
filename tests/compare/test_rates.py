"""The search for rates: equal trials, a grid that grows, on functions whose best rate is known."""

import math
from collections.abc import Callable

import pytest

from lightning_sft.compare.rates import Progress, RateSearch, search
from lightning_sft.errors import UserError

Score = Callable[[float], float]


def peak_at(best: float) -> Score:
    return lambda rate: -((math.log10(rate) - math.log10(best)) ** 2)


def run(setting: RateSearch, arms: dict[str, Score]) -> tuple[Progress, dict[str, dict[float, tuple[float, ...]]]]:
    """Answer everything that is wanted until nothing is."""
    found: dict[str, dict[float, tuple[float, ...]]] = {arm: {} for arm in arms}
    while wanted := (progress := search(setting, list(arms), found)).wanted:
        for arm, rates in wanted.items():
            assert not set(rates) & found[arm].keys(), "nothing is asked for twice"
            found[arm] |= {rate: (arms[arm](rate),) for rate in rates}
    return progress, found


def test_every_arm_finds_its_own_rate_by_equally_many_trials() -> None:
    progress, found = run(RateSearch(1e-5, 1e-1, 5, 2, 3), {"a": peak_at(1e-3), "b": peak_at(3.2e-4)})
    assert {len(rates) for rates in found.values()} == {5 + 4}
    assert progress.best == {"a": 1e-3, "b": pytest.approx(3.16e-4, rel=0.01)}
    assert progress.at_edge == {}


def test_the_grid_grows_for_all_while_any_best_is_at_an_end() -> None:
    progress, found = run(RateSearch(1e-4, 1e-2, 3, 0, 3), {"a": peak_at(1e-1), "b": peak_at(1e-5)})
    assert progress.grid == [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    assert {len(rates) for rates in found.values()} == {7}
    assert progress.best == {"a": 1e-1, "b": 1e-5}
    assert progress.at_edge == {}


def test_an_optimum_that_stays_at_an_end_is_said() -> None:
    progress, found = run(RateSearch(1e-4, 1e-2, 3, 0, 2), {"a": lambda rate: rate, "b": peak_at(1e-3)})
    assert progress.at_edge == {"a": "high"}
    assert progress.best["a"] == 1.0
    assert len(found["b"]) == 5


def test_an_arm_that_diverges_everywhere_looks_lower_and_ends() -> None:
    progress, found = run(RateSearch(1e-4, 1e-2, 3, 1, 2), {"a": lambda rate: -math.inf, "b": peak_at(1e-3)})
    assert progress.at_edge == {"a": "low"}
    assert len(found["a"]) == len(found["b"]) == 5 + 2


def test_equal_outcomes_are_told_apart_by_the_next_number() -> None:
    found = {"a": {1e-4: (0.0, -2.0), 1e-3: (0.0, -1.0), 1e-2: (0.0, -3.0)}}
    assert search(RateSearch(1e-4, 1e-2, 3, 0, 1), ["a"], found).best == {"a": 1e-3}


@pytest.mark.parametrize("bad", [{"points": 2}, {"refine": -1}, {"grow": -1}, {"low": 1.0, "high": 0.1}])
def test_bad_settings(bad: dict[str, float]) -> None:
    with pytest.raises(UserError, match="Allowed"):
        RateSearch(**bad)  # type: ignore[arg-type]
