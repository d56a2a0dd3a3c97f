"""What the advice and its page say of a study is what the study's cells say."""

import re
from pathlib import Path
from statistics import fmean

import pytest

from lightning_sft.advice.evidence import RATES_HERE, STRONG_END_HERE, WEAK_END_HERE, Evidence
from lightning_sft.advice.rate import CAREFUL, lowest_rate
from studies.cells import read_cells
from studies.continuum import analysis
from studies.continuum.design import STAGES, Block
from studies.cure import analysis as cure_analysis
from studies.cure import design as cure
from studies.rates import design as rates
from studies.rates.analysis import losses, units
from studies.rates.unit import TRAIN_TEST, at_rates
from studies.tables import NOT_RUN, cell_text

ROOT = Path(__file__).resolve().parents[2]
MAIN = STAGES["confirmatory"]


@pytest.fixture(scope="module")
def told() -> dict[str, tuple[str, str, str]]:
    """Return for each level with a complete block: its mean p, and D on clean and on noisy rows, in words of pages."""
    cells = read_cells(ROOT / "docs/studies/data/continuum")
    found = {}
    for level in ("weak", "middle", "strong"):
        blocks = [Block("initials", level, noisy) for noisy in (False, True)]
        rows = [analysis.block_row(cells, MAIN, block).exact for block in blocks]
        if any(row.complete for row in rows):
            place = f"{analysis.mean_p(cells, blocks[0]):.2f}".removeprefix("0")
            found[level] = (place, *(cell_text(row) if row.complete else NOT_RUN for row in rows))
    return found


def test_the_page_on_objectives_shows_every_block_that_is_complete(told: dict[str, tuple[str, str, str]]) -> None:
    page = (ROOT / "docs/which_objective.md").read_text(encoding="utf-8")
    shown = re.findall(r"^ *\| (\.\d\d) \| ([^|]+) \| ([^|]+) \|$", page, re.M)
    assert shown == list(told.values())


@pytest.mark.parametrize(("level", "evidence"), [("weak", WEAK_END_HERE), ("strong", STRONG_END_HERE)])
def test_the_advice_cites_the_cells(level: str, evidence: Evidence, told: dict[str, tuple[str, str, str]]) -> None:
    place, *differences = told[level]
    assert f"mean p {place}," in evidence.what
    for difference in differences:
        middle, *ends = re.findall(r"\d+\.\d", difference)
        assert middle in evidence.what
        assert all(re.search(rf"[\[ ]-?{re.escape(end)}[\],]", evidence.what) for end in ends), difference


def test_what_a_range_test_is_worth_is_what_the_study_of_rates_found() -> None:
    cells = read_cells(ROOT / "docs/studies/data/rates")
    lost = {one.rule.name: one for one in losses(cells)}

    def percent(share: float) -> str:
        return f"{100 * share:.1f}%"

    careful: dict[bool, list[float]] = {False: [], True: []}  # whether LoRA -> lost at the rate that `advise` names
    for unit in units(cells, rates.MAIN):
        test = at_rates(unit.readings, TRAIN_TEST)
        lowest = lowest_rate(list(test), list(test.values()))
        if lowest is not None:
            careful[unit.block.lora].append(unit.lost(lowest / CAREFUL))
    both = careful[False] + careful[True]
    assert f"in {len(both)} runs" in RATES_HERE.what
    assert max(both) < 1, "none diverged"
    for share in (fmean(both), fmean(careful[False]), fmean(careful[True]), lost["quarter run"].mean):
        assert percent(share) in RATES_HERE.what
    page = (ROOT / "docs/sweeps.md").read_text(encoding="utf-8")
    told = page[page.index("**How good they are.**") : page.index("**The edge.**")]
    names = ("valley", "minimum / 10", "steepest", "val, valley", "val, minimum / 10", "quarter run", "band")
    assert [percent(lost[name].mean) for name in names] == re.findall(r"\d+\.\d%", told)


def test_what_helps_against_a_silent_failure_is_what_the_study_of_cures_found() -> None:
    cells = read_cells(ROOT / "docs/studies/data/cure")
    stage = cure.STAGES["confirmatory"]
    page = (ROOT / "docs/how_to/silent_failure.md").read_text(encoding="utf-8")
    told = page[page.index("**What the two are worth.**") : page.index("[Fit, read, fit again]")]
    rows = {arm: cure_analysis.arm_row(cells, stage, cure.DENSE, arm) for arm in cure.ARMS}
    arms = (cure.CURE, cure.PLACEBO, cure.FIRST, cure.WEIGHTED, cure.STRONGEST)
    shares = [f"{100 * rows[arm].readings[cure.AHEAD]:.1f}%" for arm in arms]
    assert re.findall(r"\d+\.\d%", told) == shares
    differences = [cell_text(v.finding) for v in cure_analysis.hypotheses(cells, stage, cure.DENSE)]
    assert re.findall(r"[+-]\d+\.\d \[[^]]+\]", told) == differences
