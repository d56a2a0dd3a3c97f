"""The registered analysis on cells whose truth is known: a planted effect, none, and cells that are missing."""

import math

import numpy as np
import pytest

from lightning_sft.errors import UserError
from studies.continuum import analysis
from studies.continuum.design import FIRST, RULES, SCORE, SECOND, STAGES, Block
from studies.findings import differences, judged
from tests.studies.worlds import cell, level_cells, result, simulated

MAIN = STAGES["confirmatory"]


def planted(block: Block, arm: str) -> float:
    """-p is ahead by 20 points at the strong end and behind by 15 at the weak one; under noise by 5 more."""
    if arm != SECOND:
        return 0.4
    return 0.4 + {"weak": -0.15, "middle": 0.0, "strong": 0.2}[block.level] + 0.05 * block.noisy


def null(block: Block, arm: str) -> float:
    return 0.4


def test_a_planted_effect_is_found_in_its_direction_and_size() -> None:
    cells = simulated(MAIN, planted, seed=1)
    found = {v.name: v for v in analysis.hypotheses(cells, MAIN)}
    assert [v.verdict for v in found.values()] == ["supported"] * 3
    for name, truth in (("H1", 0.35), ("H2", 0.35), ("H3", -0.15)):
        difference = found[name].finding.difference
        assert difference is not None
        assert difference.mean == pytest.approx(truth, abs=0.02), "pairing takes out what a replicate's runs share"
        assert difference.high - difference.low < 0.05


def test_an_effect_against_the_prediction_contradicts() -> None:
    cells = simulated(MAIN, lambda block, arm: planted(block, SECOND if arm == FIRST else FIRST), seed=2)
    assert [v.verdict for v in analysis.hypotheses(cells, MAIN)] == ["contradicted"] * 3


def test_without_an_effect_few_families_of_hypotheses_err() -> None:
    runs, errors = 300, 0
    for seed in range(runs):
        verdicts = analysis.hypotheses(simulated(MAIN, null, seed), MAIN)
        errors += any(v.verdict != "undecided" for v in verdicts)
    assert errors <= 0.05 * runs + 3 * math.sqrt(0.05 * 0.95 * runs), "Holm holds the family at 5%"
    assert errors > 0, "an analysis that never errs in 300 families does not test"


def test_nothing_is_decided_while_a_cell_is_missing() -> None:
    cells = simulated(MAIN, planted, seed=3)
    weak = Block("initials", "weak", noisy=False).name
    cells = [c for c in cells if not (c.block == weak and c.arm == SECOND and c.replicate == 5)]
    found = {v.name: v for v in analysis.hypotheses(cells, MAIN)}
    assert {v.verdict for v in found.values()} == {"not complete"}
    assert all(v.p_holm is None for v in found.values())
    assert len(found["H3"].finding.values) == 7
    assert found["H3"].finding.p is None
    assert found["H1"].finding.complete
    row = analysis.block_row(cells, MAIN, Block("initials", "weak", noisy=False))
    assert not row.exact.complete


def test_no_cells_at_all() -> None:
    assert {v.verdict for v in analysis.hypotheses([], MAIN)} == {"not complete"}
    assert analysis.block_crossing([], MAIN, "initials", True) is None
    assert all(r.passes is None for r in analysis.regrets([], STAGES["rules"], RULES))
    assert all(r.mean is None for r in analysis.many_to_one([], STAGES["exploratory"], MAIN.blocks[0]))


def test_a_diverged_run_counts_as_nothing_right() -> None:
    block = MAIN.blocks[0]
    cells = [cell(MAIN.name, block.name, FIRST, 0, 0.5)]
    cells.append(cell(MAIN.name, block.name, SECOND, 0, 0.0, result=result(0.9, "diverged").plain()))
    assert differences(judged(cells, MAIN.name, block.name), SCORE, SECOND, FIRST) == {0: -0.5}
    assert analysis.block_row(cells, MAIN, block).diverged == {FIRST: 0, SECOND: 1}


def test_replicates_beyond_the_design_do_not_count() -> None:
    block = MAIN.blocks[0]
    cells = [cell(MAIN.name, block.name, arm, r, 0.5 if r < 8 else 0.9) for arm in MAIN.arms for r in range(10)]
    found = analysis.block_row(cells, MAIN, block).exact
    assert found.complete
    assert sorted(found.values) == list(range(8))


def test_one_arm_judged_at_two_rates_is_refused() -> None:
    block = MAIN.blocks[0].name
    cells = [cell(MAIN.name, block, FIRST, 0, 0.5), cell(MAIN.name, block, FIRST, 1, 0.5, rate=3e-5)]
    with pytest.raises(UserError, match=r"judge one arm at two rates"):
        judged(cells, MAIN.name, block)


def test_the_crossing_is_where_the_planted_line_is_zero() -> None:
    def line(block: Block, arm: str) -> float:
        place = {"weak": 0.05, "middle": 0.3, "strong": 0.7}[block.level]
        return 0.5 + (0.4 * (place - 0.35) if arm == SECOND else 0.0)

    inside = 0
    for seed in range(200):
        found = analysis.block_crossing(simulated(MAIN, line, seed), MAIN, "initials", True)
        assert found is not None
        assert found.at == pytest.approx(0.35, abs=0.12)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.at < found.high
        inside += found.low <= 0.35 <= found.high
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200) <= inside / 200 <= 1.0, "Fieller's interval covers in 95%"


def test_h1_is_repeated_on_another_task_by_a_test_of_its_own() -> None:
    stage = STAGES["second_task"]
    found = analysis.repeated(simulated(stage, planted, seed=8), stage)
    assert found.verdict == "supported"
    assert found.finding.difference is not None
    assert found.finding.difference.mean == pytest.approx(0.35, abs=0.02)
    assert found.p_holm == found.finding.p
    assert analysis.repeated(simulated(stage, null, seed=9), stage).verdict == "undecided"
    assert analysis.repeated(simulated(stage, planted, seed=8)[:-1], stage).verdict == "not complete"
    assert analysis.repeated(simulated(MAIN, planted, seed=8), stage).verdict == "not complete"


def test_a_line_without_slope_has_no_bounded_crossing() -> None:
    found = analysis.block_crossing(simulated(MAIN, null, seed=4), MAIN, "initials", False)
    assert found is not None
    assert (found.low, found.high) == (None, None)


def test_fieller_agrees_with_a_search_over_places() -> None:
    """The interval is the set of places where a t-test of the line's mean over replicates gives p >= 5%."""
    rng = np.random.default_rng(5)
    rows = [[-0.2 + rng.normal(0, 0.05), 0.02 + rng.normal(0, 0.05), 0.3 + rng.normal(0, 0.05)] for _ in range(8)]
    places = [0.05, 0.3, 0.7]
    found = analysis.crossing(places, rows)
    assert found is not None
    fits = [np.polyfit(places, row, 1) for row in rows]

    def p(place: float) -> float:
        from scipy.stats import ttest_1samp

        return float(ttest_1samp([np.polyval(fit, place) for fit in fits], 0).pvalue)

    assert p(found.low) == pytest.approx(0.05, abs=1e-6)
    assert p(found.high) == pytest.approx(0.05, abs=1e-6)
    assert p((found.low + found.high) / 2) > 0.05


def test_many_arms_are_adjusted_in_their_block() -> None:
    stage = STAGES["exploratory"]
    cells = simulated(stage, lambda block, arm: 0.8 if arm == "EAFT" else 0.4, seed=6)
    rows = {row.arm: row for row in analysis.many_to_one(cells, stage, stage.blocks[0])}
    assert rows["EAFT"].p_holm is not None
    assert rows["EAFT"].p_holm < 0.05
    assert rows["EAFT"].finding.p is not None
    assert rows["EAFT"].p_holm == pytest.approx(rows["EAFT"].finding.p * len(rows))
    assert sum(row.p_holm <= 0.05 for row in rows.values() if row.p_holm is not None) == 1


def test_rules_are_judged_by_pairs_of_task_and_checkpoint() -> None:
    stage = STAGES["rules"]
    assert len({(block.task, block.level) for block in stage.blocks}) >= 8, "unseen pairs"
    seen = {(block.task, block.level) for name in STAGES if name != "rules" for block in STAGES[name].blocks}
    assert not seen & {(block.task, block.level) for block in stage.blocks}

    def truth(block: Block, arm: str) -> float:
        best = SECOND if block.level in ("at .4", "at .6") else FIRST
        return 0.6 if arm in (best, "auto") else 0.4

    found = {(r.rule, r.constant): r for r in analysis.regrets(simulated(stage, truth, seed=7), stage, RULES)}
    assert found["auto", FIRST].passes
    assert found["auto", SECOND].passes
    assert found["Adaptive", FIRST].passes is False
    assert found["auto", FIRST].finding.expected == len(stage.blocks)


def test_tokens_until_the_first_arms_best() -> None:
    runs = {"NLL": {0: result(0.4), 1: result(0.4)}, "x": {0: result(0.8), 1: result(0.3)}}
    assert analysis.tokens_to_best_of_first(runs, "x") == [100, None]
    assert analysis.tokens_to_best_of_first(runs, "NLL") == [400, 400]


def test_mean_p_is_the_levels_own() -> None:
    assert analysis.mean_p(level_cells(MAIN), MAIN.blocks[0]) == 0.05
    assert analysis.mean_p([], MAIN.blocks[0]) is None
