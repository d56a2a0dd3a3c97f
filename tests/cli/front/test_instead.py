"""Names of other tools are answered by what to type here, and all of that exists."""

import re
import shlex

import pytest

from lightning_sft.cli.front.check import check
from lightning_sft.cli.front.instead import _INSTEAD, instead
from lightning_sft.cli.front.names import SETTINGS, plain
from lightning_sft.cli.front.words import WORDS
from lightning_sft.errors import UserError
from lightning_sft.places import shipped_folder
from tests.docs.test_coming_from import ROWS

MODEL = ["--model.model_name_or_path=a/b", "--data.train=rows.jsonl"]
NAMES = [name for names in _INSTEAD for name in names]
#: names of a tool that the tables for those who come from there hold
THERE = sorted(
    {
        name.partition(":")[0].rpartition(".")[2]
        for there, _, _ in ROWS
        for name in re.findall(r"`([^`]+)`", there)
        if re.fullmatch(r"[a-z][a-z_0-9.]*(: .*)?", name)
    }
)
#: words that go on with the sentence behind an option, and are no value of it
VERBS = ("takes", "does", "names", "says", "sets", "seeds", "loads")
#: of the names in the tables, what is right as it is: short words and sections of ours
RIGHT = {*WORDS, "model", "adapter", "dataset_info", "json"}


def test_a_name_stands_once() -> None:
    assert len({plain(name) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("text", sorted(set(_INSTEAD.values())))
def test_what_is_named_exists(text: str) -> None:
    assert not text.endswith(".")
    for folder in re.findall(r"configs/([\w/]+\.yaml)", text):
        assert (shipped_folder() / folder).is_file()
    for option, value in re.findall(r"(--[a-z_.]+)(?: ('[^']*'|[\w.-]+))?", text):
        if option in ("--push_to_hub", "--output") or option.startswith("--trainer.logger."):
            continue
        given = ["--adapter=lora"] if option.startswith("--adapter.") else []
        given += ["--train=Source"] if option.startswith("--train.") else []
        given += ["--model.optimizer=AdamW"] if option.startswith("--model.optimizer.") else []
        filler = "AdamW" if option == "--model.optimizer" else "1"
        check("fit", [*MODEL, *given, option, *([filler] if not value or value in VERBS else shlex.split(value))])


@pytest.mark.parametrize("name", THERE)
def test_the_tables_for_those_who_come_from_elsewhere_are_answered(name: str) -> None:
    """Each name of another tool is a setting of this name, leads to one, or is answered with what to type."""
    if name in RIGHT:
        return
    try:
        check("fit", [*MODEL, f"--{name}=1"])
    except UserError as error:
        said = str(error)
        assert "did you mean" in said or instead(name) or "is not supported" in said, said
        known = plain(name) in {plain(key) for key in SETTINGS} or instead(name) is not None
        assert known or "did you mean" in said
