"""The tables for those who come from elsewhere name settings and verbs that exist."""

import json
import re
from pathlib import Path

import pytest

import lightning_sft
from lightning_sft.cli.front.words import WORDS
from lightning_sft.cli.verbs import LIGHTNING_VERBS, OWN_VERBS
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/coming_from.md").read_text(encoding="utf-8")
LISTING = json.loads((Path(lightning_sft.__file__).parent / "cli/front/settings.json").read_text(encoding="utf-8"))
#: one row of a table: what it is called there, here, and what to know
ROWS = re.findall(r"^\| (.+?) \| (.+?) \|(.*)\|$", PAGE, re.M)
NAMED = sorted({name for _, here, _ in ROWS for name in re.findall(r"`([^`]+)`", here)})


def test_every_tool_has_a_table() -> None:
    assert re.findall(r"^## (.+)", PAGE, re.M) == ["TRL's SFTTrainer", "Axolotl", "LLaMA-Factory", "torchtune"]
    assert len(ROWS) > 80


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_exists(name: str) -> None:
    if name.startswith("lightning "):
        assert name.split()[1] in {**LIGHTNING_VERBS, **OWN_VERBS}
        return
    if name.startswith("--"):
        assert name.removeprefix("--") in {*WORDS, "output"}
        return
    key, _, value = name.partition(": ")
    assert key in LISTING["settings"], f"{key} is no setting"
    if key == "model.objective" and value:
        assert value in LISTING["classes"]["Objective"]


def test_short_words_that_have_no_setting_of_their_name_are_said() -> None:
    named = [here for there, here, _ in ROWS if "`output_dir`" in there]
    assert named
    assert all("`--output`" in here for here in named), "what the answer to --output_dir names, too"


def test_objectives_that_are_named_exist() -> None:
    named = {word for _, _, note in ROWS for word in re.findall(r"`([A-Z]\w+)`", note)}
    assert {"DFT", "ASFT", "EAFT"} <= named <= set(LISTING["classes"]["Objective"])
