"""The configurations in docs/data.md build the data module that they describe."""

import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_sft.data import ReasoningGymTask, SFTDataModule, Source
from lightning_sft.data.codes import Code

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_yaml_block_builds(block):
    parser = ArgumentParser()
    parser.add_class_arguments(SFTDataModule, "data")
    data = parser.instantiate(parser.parse_string(block)).data
    assert isinstance(data, SFTDataModule)
    train = yaml.safe_load(block)["data"]["train"]
    kinds = {"lightning_sft.data.Source": Source, "lightning_sft.data.ReasoningGymTask": ReasoningGymTask}
    for given, source in zip(train if isinstance(train, list) else [train], data.sets.sources_of["train"], strict=True):
        expected = Source if isinstance(given, str) else kinds[given["class_path"]]
        assert type(source) is expected


def test_the_page_names_every_setting():
    text = PAGE.read_text()
    for name in (
        "train_on",
        "apply_chat_template",
        "truncation",
        "on_bad_row",
        "on_dropped_reasoning",
        "on_unanswered",
        "on_repeated_role",
        "rejected_file",
        "template_kwargs",
        "system",
        "loss_weights",
    ):
        assert f"`{name}" in text


def test_the_page_names_every_code():
    text = PAGE.read_text()
    assert all(f"`{code.value}`" in text for code in Code)


def test_blocks_were_found():
    assert len(BLOCKS) == 5
