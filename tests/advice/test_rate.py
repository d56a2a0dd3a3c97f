"""A range test's curve judges the rate of a run."""

import math

import pytest

from lightning_sft.advice.evidence import RATES_HERE
from lightning_sft.advice.page import Survey
from lightning_sft.advice.rate import judge_rate
from lightning_sft.sweep.results import RangeTest
from lightning_sft.sweep.search import geometric_grid
from lightning_sft.sweep.suggest import smoothed, suggest


def curve(losses: list[float], low: float = 1e-6, high: float = 1.0) -> RangeTest:
    rates = geometric_grid(low, high, max(len(losses), 2))[: len(losses)]
    found = suggest(rates, losses)
    return RangeTest("range", 0, "", "training loss", rates, losses, smoothed(losses, 0.0), found, "valley")


#: falls from 1e-4 on, is lowest at 1e-1 and rises at 1
FALLS = curve([5.0, 4.99, 4.97, 4.5, 3.0, 2.0, 8.0])


@pytest.mark.parametrize(
    ("rate", "verdict"), [(1e-5, "very low"), (1e-3, "sane"), (0.05, "sane"), (0.3, "at the edge"), (3.0, "too high")]
)
def test_the_rate_against_the_curve(rate: float, verdict: str) -> None:
    reading = judge_rate(rate, FALLS)
    assert reading.verdict == verdict, reading.why
    assert reading.suggestion == pytest.approx(0.01)


def test_a_sane_rate_above_the_suggestions_says_why_it_may_stay() -> None:
    why = judge_rate(0.05, FALLS).why
    assert "falls on up to 0.1, 2.0 times as much" in why
    assert "The rules below name lower rates (0.001 to 0.01)" in why, "all but the edge, which is 0.1"
    assert "nothing against 0.05" in why
    assert "Some of the rules below name lower rates (0.001)" in judge_rate(0.005, FALLS).why
    assert "name lower rates" not in judge_rate(5e-4, FALLS).why


def test_a_curve_that_falls_to_its_end_calls_no_rate_too_high() -> None:
    assert judge_rate(1.0, curve([5.0, 4.9, 4.5, 4.0, 3.0, 2.0])).verdict == "sane"


@pytest.mark.parametrize("losses", [[5.0, math.nan], [math.inf], [], [5.0, 30.0, math.nan]])
def test_divergence_at_once_is_said(losses: list[float]) -> None:
    reading = judge_rate(1e-3, curve(losses, high=4e-6))  # the steps of a fine test, which ended early
    assert reading.verdict == "diverges at once"
    assert "blows up at every rate" in reading.why
    assert reading.suggestion is None


def test_a_test_of_a_few_wide_steps_is_called_too_coarse() -> None:
    reading = judge_rate(1e-2, curve([5.5, 5.3, 5.0]))
    assert reading.verdict == "unknown"
    assert "each at 1000 times the rate of the one before" in reading.why
    assert "--range_steps" in reading.why
    assert reading.suggestion is None


def test_a_loss_that_never_comes_back_diverged_at_once() -> None:
    falls = [30.0, 28.0, 26.0, 24.0, 22.0]
    reading = judge_rate(1e-3, curve(falls), before=5.0)
    assert reading.verdict == "diverges at once"
    assert "5.00 that it was before" in reading.why
    assert judge_rate(1e-3, curve(falls), before=30.0).verdict != "diverges at once"


def test_a_flat_curve_says_nothing() -> None:
    reading = judge_rate(1e-3, curve([5.0, 5.01, 4.98, 5.0, 4.99]))
    assert (reading.verdict, reading.suggestion) == ("unknown", None)


def test_beside_a_suggested_rate_stands_how_good_such_rates_are() -> None:
    told = Survey(["--config=a.yaml"], rate=judge_rate(1e-5, FALLS))
    assert RATES_HERE.what in told.markdown()
    told.rate = judge_rate(1e-3, curve([5.0, 5.01, 4.98, 5.0, 4.99]))
    assert RATES_HERE.what not in told.markdown()
