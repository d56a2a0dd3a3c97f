"""Why stored runs are not used, and how a worker differs from a comparison."""

from dataclasses import replace
from typing import Any

import pytest

from lightning_sft.compare.design import RunSpec
from lightning_sft.compare.facts import depends_on, differences, why_unused
from lightning_sft.compare.result import RunResult
from tests.compare.worlds import design, world

FACTS = {"package code": "data 1, head 2", "libraries": "torch 2.7", "model": "a"}


def factual(*names: str, **settings: Any) -> Any:
    of = design(*names, **settings)
    return replace(of, arms=tuple(replace(arm, facts=FACTS) for arm in of.arms))


def stored(of: Any) -> dict[str, RunResult]:
    specs = [RunSpec("search", 0, "A", 1e-3), RunSpec("judged", 1, "B", 1e-3)]
    return {of.digest_of(s): replace(world(of)(s), depends_on=depends_on(of, s)) for s in specs}


def test_runs_of_the_same_comparison_are_used() -> None:
    of = factual("A", "B")
    assert why_unused(of, stored(of)) == []
    assert why_unused(factual("A", "B", replicates=9), stored(of)) == []
    assert why_unused(factual("A", "C"), stored(of)) == [], "another arm's runs are nobody's loss"
    kept = {digest: RunResult.of(result.plain()) for digest, result in stored(of).items()}
    assert kept == stored(of)


@pytest.mark.parametrize(
    ("fact", "value", "said"),
    [
        (
            "package code",
            "data 9, head 2, models 1",
            r"written by another version of the package code \(data, models\)",
        ),
        ("own code", "mine 1", r"written by another version of the own code \(mine\)"),
        ("model", "b", "the model's files were others."),
        ("data", "b", "the data, or how they are read, were others."),
    ],
)
def test_a_reason_names_what_changed(fact: str, value: str, said: str) -> None:
    of = factual("A", "B")
    changed = replace(of, arms=tuple(replace(arm, facts={**FACTS, fact: value}) for arm in of.arms))
    (line,) = why_unused(changed, stored(of))
    assert line.startswith("2 stored runs are not used: ")
    assert said.replace("\\", "") in line


def test_settings_seeds_and_old_files_are_reasons() -> None:
    of = factual("A", "B")
    other = replace(of, arms=(of.arms[0], replace(of.arms[1], config="another")))
    assert why_unused(other, stored(of)) == ["1 stored run is not used: the settings of B were others."]
    assert "their seeds or rows were others" in why_unused(replace(of, seed="7"), stored(of))[0]
    assert "their seeds or rows were others" in why_unused(replace(of, parts=True), stored(of))[0]
    drift = why_unused(replace(of, select="drift/general/kl"), stored(of))
    assert drift == ["1 stored run is not used: what was read was the validation alone and is all that is configured."]
    old = {digest: replace(result, depends_on={}) for digest, result in stored(of).items()}
    assert "did not say what its runs depend on" in why_unused(of, old)[0]


def test_differences_name_the_rooms_of_code() -> None:
    assert differences(FACTS, FACTS) == []
    here = {**FACTS, "package code": "data 1, head 3", "model": "b"}
    assert differences(FACTS, here, "in the comparison") == [
        "package code (head) is another here than in the comparison",
        "model is b here and a in the comparison",
    ]
