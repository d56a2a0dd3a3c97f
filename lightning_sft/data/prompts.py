"""Rows of a set as prompts to answer."""

from __future__ import annotations

from typing import Literal

from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.storage.dataset import BuiltSet
from lightning_sft.data.types import GenerationRow

Answered = Literal["val", "test", "predict"]


def prompts(built: BuiltSet, encoder: Encoder, stage: Answered, limit: int | None = None) -> list[GenerationRow]:
    """Return rows of a set as prompts, at most ``limit``, spread evenly over the set and its sources.

    Args:
        built: the set.
        encoder: turns a row into the ids of its prompt.
        stage: name of the set.
        limit: the most rows; None is all.
    """
    able = [index for index, example in enumerate(built.examples) if example.has_prompt]
    if limit is not None and limit < len(able):
        able = [able[i * len(able) // limit] for i in range(limit)]
    rows: list[GenerationRow] = []
    for index in able:
        example = built.examples[index]
        text, ids = encoder.prompt(example)
        rows.append(GenerationRow(index, int(built.dataset.sources[index]), ids, text, example.reference, stage))
    return rows
