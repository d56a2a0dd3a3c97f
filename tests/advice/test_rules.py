"""Planted readings give the advice that this table states."""

from dataclasses import dataclass, replace

import pytest

from lightning_sft.advice.choice import (
    HALF_WAY,
    LIKELY_ONLY,
    MINUS_P,
    NLL,
    NLL_ON_SPECIAL,
    SMALL_ALPHA,
    WITH_FLOOR,
    Choice,
)
from lightning_sft.advice.rules import ENOUGH_ROWS, advise
from lightning_sft.metrics.capability_reading import CapabilityReading
from tests.advice.readings import planted


@dataclass
class Case:
    """A reading and its advice."""

    reading: CapabilityReading
    place: str
    first: Choice
    avoid: tuple[Choice, ...]
    pick: Choice
    compare: bool
    says: str


PER_SOURCE = Choice("PerSource", {"objectives": {"maths": MINUS_P, "puzzles": NLL}, "default": NLL})
CASES = {
    "strong": Case(planted({"a": 0.8}), "strong", MINUS_P, (), MINUS_P, True, "lean on what it believes"),
    "weak": Case(
        planted({"a": 0.02}, end=0.02),
        "weak",
        NLL,
        (MINUS_P, LIKELY_ONLY, Choice("DFT")),
        NLL,
        False,
        "teach it with NLL",
    ),
    "between": Case(planted({"a": 0.4}), "intermediate", NLL, (), NLL, True, "no objective is known to win here"),
    "an interval over the cut-off": Case(
        planted({"a": 0.71}, noise=0.25), "strong", NLL, (), NLL, True, "holds the cut-off 0.7"
    ),
    "few rows": Case(planted({"a": 0.8}, rows=7), "strong", NLL, (), NLL, True, "13 are missing"),
    "sources that differ": Case(
        planted({"maths": 0.95, "puzzles": 0.02}, end=None), "intermediate", PER_SOURCE, (), NLL, True, "puzzles: weak"
    ),
    "an unknown end token, strong": Case(
        planted({"a": 0.99}, end=1e-5), "strong", WITH_FLOOR, (MINUS_P,), WITH_FLOOR, True, "End-of-turn trap"
    ),
    "an unknown end token, between": Case(
        planted({"a": 0.5}, end=1e-5), "intermediate", NLL, (MINUS_P,), NLL, True, "mean p 1e-05"
    ),
    "short answers whose end is known": Case(
        planted({"a": 0.057}, end=0.9), "weak", NLL, (MINUS_P, LIKELY_ONLY, Choice("DFT")), NLL, False, "teach it"
    ),
    "all known": Case(planted({"a": 0.99}, exact=True), "strong", MINUS_P, (), MINUS_P, True, "little left to teach"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_table(name: str) -> None:
    case = CASES[name]
    advice = advise(case.reading)
    assert (advice.place, advice.try_first[0], advice.avoid) == (case.place, case.first, case.avoid)
    assert (advice.pick, advice.compare) == (case.pick, case.compare)
    page = advice.markdown("--config own.yaml")
    assert case.says in page
    assert page.count("--config own.yaml") == 1, "one command"
    assert not set(advice.try_first) & set(advice.avoid)
    assert ("lightning compare" in page) == case.compare
    assert {e.kind for e in advice.evidence} >= {"guess"}
    assert all(e.link for e in advice.evidence)
    assert advice.text().splitlines()[-1] == f"Next: {advice.command()}"


@pytest.mark.parametrize(
    ("reading", "standing"),
    [
        (planted({"a": 0.71}, noise=0.25), "strong or intermediate"),
        (planted({"a": 0.69}, noise=0.25), "intermediate or strong"),
        (planted({"a": 0.0995}, noise=0.05), "weak or intermediate"),
        (planted({"a": 0.8}, rows=7), "perhaps strong"),
        (planted({"a": 0.02}, rows=7), "perhaps weak"),
    ],
)
def test_an_advice_in_doubt_says_nothing_as_if_it_were_sure(reading: CapabilityReading, standing: str) -> None:
    advice = advise(reading)
    told = advice.markdown() + advice.text()
    assert f"Where the model stands is not certain ({standing}): compare objectives on your data" in told
    assert reading.in_short().startswith(f"{standing}. ")
    for sure in ("lean on what it believes", "teach it with NLL", "The model half knows", "Avoid", "Most supervised"):
        assert sure not in told
    assert all(choice.short() in advice.command() for choice in advice.try_first), "what is advised is compared"
    assert len(advice.why) == len(reading.places) + 1


def test_a_reading_in_doubt_that_compares_minus_p_warns_of_the_end_token() -> None:
    assert "End-of-turn trap" in str(advise(planted({"a": 0.1}, end=1e-5, noise=0.05)).trap)


def test_the_trap_names_both_ways_out() -> None:
    advice = advise(planted({"a": 0.99}, end=1e-5))
    assert WITH_FLOOR in advice.try_first
    assert NLL_ON_SPECIAL in advice.try_first
    assert advise(planted({"a": 0.99}, end=None)).trap is None
    assert advise(planted({"a": 0.05}, end=1e-5)).trap is None, "NLL teaches it"
    assert HALF_WAY in advise(planted({"a": 0.4})).try_first


def test_a_source_with_few_rows_says_how_many_are_missing() -> None:
    reading = planted({"a": 0.8, "b": 0.8}, rows=8)
    limits = "\n".join(advise(reading).limits)
    assert f"Source 'a': 8 rows read, {ENOUGH_ROWS - 8} too few" in limits
    assert "Source" not in "\n".join(advise(planted({"a": 0.8, "b": 0.8})).limits)


def test_few_right_or_wrong_answers_are_called_thin_evidence() -> None:
    none, every = (advise(planted({"a": 0.4}, exact=exact)).limits for exact in (False, True))
    assert "none of 60 answers is right" in none[0]
    assert "0.0% to 6.0%" in none[0]
    assert "none of 60 answers is wrong" in every[0]
    assert "thin evidence" not in "".join(advise(planted({"a": 0.4}, end=None)).limits)


def test_special_tokens_of_which_none_ends_generation_are_a_trap() -> None:
    reading = planted({"a": 0.4}, end=None)
    assert advise(reading).trap is None
    trap = advise(replace(reading, special=reading.all)).trap
    assert trap is not None
    assert "nothing teaches the model to stop" in trap
    assert "eos_token" in trap


@pytest.mark.parametrize("name", CASES)
def test_choices_are_built_stored_and_named(name: str) -> None:
    advice = advise(CASES[name].reading)
    for choice in (*advice.try_first, *advice.avoid, advice.pick):
        assert type(choice.build()).__name__ == choice.name
        assert Choice.from_dict(choice.to_dict()) == choice
    content = advice.to_dict()
    assert Choice.from_dict(content["pick"]) == advice.pick
    assert SMALL_ALPHA.options() == "--objective PowerFamily --objective.alpha 0.1"
