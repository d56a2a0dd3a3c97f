"""A range test's curve judges the rate of a run."""

import math
import re

import pytest

from lightning_sft.advice.comparison import too_few_to_compare
from lightning_sft.advice.evidence import RATES_HERE
from lightning_sft.advice.page import Survey
from lightning_sft.advice.rate import judge_rate
from lightning_sft.sweep.results import RangeTest
from lightning_sft.sweep.search import geometric_grid
from lightning_sft.sweep.suggest import smoothed, suggest
from tests.advice.test_rules import CASES


def curve(losses: list[float], low: float = 1e-6, high: float = 1.0) -> RangeTest:
    rates = geometric_grid(low, high, max(len(losses), 2))[: len(losses)]
    found = suggest(rates, losses)
    return RangeTest("range", 0, "", "training loss", rates, losses, smoothed(losses, 0.9), found, "valley")


#: falls from 1e-4 on, is lowest at 1e-1, as its mean of three is, and rises beyond
FALLS = curve([5.0, 5.0, 5.0, 4.99, 4.98, 4.97, 4.8, 4.2, 3.4, 2.4, 1.6, 2.4, 9.0])


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(1e-5, "very low"), (1e-3, "sane"), (0.05, "high"), (0.3, "at the edge"), (3.0, "too high")],
)
def test_the_rate_against_the_curve(rate: float, verdict: str) -> None:
    reading = judge_rate(rate, FALLS)
    assert reading.verdict == verdict, reading.why
    assert reading.lowest == pytest.approx(0.1)
    assert reading.suggestion == pytest.approx(0.01)


def test_all_that_is_said_is_of_one_curve() -> None:
    """The exponential mean, which turns later, is lowest elsewhere; nothing may be said of it."""
    assert suggest(FALLS.rates, FALLS.losses, 0.9).minimum_tenth != pytest.approx(0.01)
    for rate in (1e-5, 1e-3, 0.05, 0.3, 3.0):
        page = Survey(["--config=a.yaml"], rate=judge_rate(rate, FALLS)).markdown()
        assert "lowest at 0.1 (" in page
        assert set(re.findall(r"lowest at ([\d.e-]+\d)", page)) == {"0.1"}
        assert "a tenth of that is 0.01: a careful rate to begin with, not the best one" in page
        assert "mean of a loss and its two neighbours" in page


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_beside_a_high_rate_that_stays_stands_a_careful_one(rate: float) -> None:
    page = Survey(["--config=a.yaml"], rate=judge_rate(rate, FALLS)).markdown()
    assert "the careful choice is `--lr 0.01`" in page


def test_noise_that_does_not_fall_names_no_rate() -> None:
    noise = [2.0, 2.6, 1.7, 2.4, 1.9, 2.7, 1.8, 2.3, 2.0, 2.5, 1.8, 2.2]
    reading = judge_rate(1e-3, curve(noise))
    assert (reading.verdict, reading.suggestion, reading.lowest) == ("unknown", None, None)


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


def test_a_comparison_is_offered_only_where_it_has_rows_to_learn_from_and_to_judge_by() -> None:
    for train, val, few in [(2, 1, True), (7, 50, True), (200, 7, True), (79, None, True), (None, 3, True)]:
        assert too_few_to_compare(train, val) == few
    for train, val in [(8, 8), (80, None), (None, None), (None, 8)]:
        assert not too_few_to_compare(train, val)
    unsure = next(case for case in CASES.values() if case.compare)
    told = Survey(["--config=a.yaml"], capability=unsure.reading, counts={"train": {"rows": 90}, "val": {"rows": 9}})
    assert told.command().startswith("lightning compare")
    told.counts = {"train": {"rows": 90}}
    assert "--data.val_split 0.1" in told.command(), "nine of them judge"
    told.counts = {"train": {"rows": 2}, "val": {"rows": 1}}
    assert told.command().startswith("lightning fit")
    assert "lightning compare" not in told.markdown().replace("`lightning compare` finds", "")
    assert "there are too few rows for a comparison: it needs 8 or more to be judged by" in told.markdown()
