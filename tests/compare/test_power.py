"""Power of the paired test: against simulation, and against each other."""

import numpy as np
import pytest
import scipy.stats

from lightning_sft.compare.power import Resolution, needed, power, resolvable
from lightning_sft.errors import UserError


def test_power_is_how_often_scipys_test_finds_the_difference() -> None:
    draw = np.random.default_rng(0)
    for replicates, effect in ((3, 1.5), (8, 1.16), (20, 0.3)):
        samples = effect + draw.standard_normal((20_000, replicates))
        found = (scipy.stats.ttest_1samp(samples, 0, axis=1).pvalue <= 0.05).mean()
        assert power(effect, replicates) == pytest.approx(found, abs=0.012)
    assert power(0.0, 8) == pytest.approx(0.05)
    assert power(50.0, 2) > 0.99


@pytest.mark.parametrize("arms", [2, 5])
def test_resolvable_and_needed_are_each_others_inverse(arms: int) -> None:
    for replicates in (3, 8, 30):
        assert needed(resolvable(replicates, arms) * 1.0001, arms) == replicates
    assert needed(1e-3, arms) is None


def test_sentences_name_what_the_wished_difference_needs() -> None:
    known = Resolution(8, 2, spread=0.05, wish=0.02).text()
    assert f"is a difference of {0.05 * resolvable(8):.4g}." in known
    assert f"A difference of 0.02 needs {needed(0.4)} replicates" in known
    unknown = Resolution(2, 3, wish=0.02).text()
    assert "nobody knows before a run" in unknown
    assert "t is 12.7 instead of 2.0" in unknown


def test_bad_numbers() -> None:
    with pytest.raises(UserError, match="Allowed: 2 or more of both"):
        resolvable(1, 2)
    with pytest.raises(UserError, match="above 0"):
        needed(0.0)
