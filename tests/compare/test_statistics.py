"""Statistics of arms: against scipy's own tests, and over 200 simulated comparisons with planted outcomes."""

import math

import numpy as np
import pytest
import scipy.stats

from lightning_sft.compare.statistics import contrasts, fill_diverged, holm, paired_test, ranking

REPLICATES = 8
BETTER = 0.06  # what arm B is ahead by
RUNS = 200


def planted(seed: int) -> dict[str, list[float]]:
    """Exact match of four arms: the judged rows of a replicate move all of them, and each run has luck of its own.

    B is better by `BETTER`, C is A's equal, and D would be better than both, but diverges in one seed of four.
    """
    draw = np.random.default_rng([7, seed])
    rows = 0.5 + 0.08 * draw.standard_normal(REPLICATES)  # how hard a replicate's rows are
    ahead = {"A": 0.0, "B": BETTER, "C": 0.0, "D": 2 * BETTER}
    scores = {arm: (rows + gain + 0.03 * draw.standard_normal(REPLICATES)).tolist() for arm, gain in ahead.items()}
    for replicate in draw.permutation(REPLICATES)[: REPLICATES // 4]:
        scores["D"][replicate] = math.nan
    return scores


def test_over_simulated_comparisons_intervals_cover_and_nothing_is_found_where_nothing_is() -> None:
    covered = {"B": 0, "C": 0}
    false = found = above = 0
    for seed in range(RUNS):
        filled = fill_diverged(planted(seed), higher=True, bound=0.0)
        assert filled.diverged == {"A": 0, "B": 0, "C": 0, "D": REPLICATES // 4}
        by_arm = {c.arm: c for c in contrasts(filled.values, higher=True)}
        for arm, true in (("B", BETTER), ("C", 0.0)):
            low, high = by_arm[arm].difference.low, by_arm[arm].difference.high
            assert low is not None
            assert high is not None
            covered[arm] += low <= true <= high
        false += by_arm["C"].verdict != "undecided"
        found += by_arm["B"].verdict == "better"
        order = ranking(filled.values, higher=True)
        above += order.index("D") < order.index("B")
    for arm, count in covered.items():
        assert 0.92 <= count / RUNS <= 0.98, f"{arm}: {count} of {RUNS}"
    assert 0.92 <= sum(covered.values()) / (2 * RUNS) <= 0.98
    assert false / RUNS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / RUNS)
    assert above == 0
    assert found > 0.75 * RUNS


def test_dropping_diverged_runs_would_have_put_them_first() -> None:
    kept = {arm: [v for v in row if math.isfinite(v)] for arm, row in planted(0).items()}
    assert ranking(kept, higher=True)[0] == "D"


def test_the_family_errs_in_no_more_than_one_comparison_of_twenty() -> None:
    draw = np.random.default_rng(3)
    wrong = 0
    for _ in range(400):
        rows = draw.standard_normal(REPLICATES)
        values = {arm: (rows + draw.standard_normal(REPLICATES)).tolist() for arm in "ABCDE"}
        wrong += any(c.verdict != "undecided" for c in contrasts(values, higher=True))
    assert wrong / 400 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)


def test_paired_test_and_interval_are_scipys() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.standard_normal((2, 6))
    values = {"a": a.tolist(), "b": (b + 1).tolist()}
    (contrast,) = contrasts(values, higher=True)
    expected = scipy.stats.ttest_rel(b + 1, a)
    assert contrast.p == pytest.approx(expected.pvalue, rel=1e-9)
    low, high = expected.confidence_interval(0.95)
    assert (contrast.difference.low, contrast.difference.high) == (pytest.approx(low), pytest.approx(high))
    assert contrast.p_holm == contrast.p, "one contrast needs no correction"
    (turned,) = contrasts(values, higher=False)
    assert {contrast.verdict, turned.verdict} in ({"better", "worse"}, {"undecided"})


def test_holm_by_hand() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize(
    ("differences", "p"),
    [([0.0] * 8, 1.0), ([0.25] * 4, 0.125), ([0.1 + 0.2, 0.3, 0.3], 0.25), ([0.5], 1.0), ([math.nan, 1.0], 1.0)],
)
def test_without_spread_the_sign_test_stands_in(differences: list[float], p: float) -> None:
    assert paired_test(differences) == p


def test_diverged_runs_count_as_the_worst() -> None:
    nll = {"a": [1.0, 2.0, math.inf], "b": [math.nan, 3.0, math.nan], "c": [1.5, math.inf, math.nan]}
    filled = fill_diverged(nll, higher=False)
    assert filled.values == {"a": [1.0, 2.0, 3.0], "b": [1.5, 3.0, 3.0], "c": [1.5, 3.0, 3.0]}
    assert filled.diverged == {"a": 1, "b": 2, "c": 2}
    assert fill_diverged({"a": [0.2], "b": [math.nan]}, higher=True, bound=0.0).values["b"] == [0.0]
    assert math.isnan(fill_diverged({"a": [math.nan]}, higher=True).values["a"][0])
