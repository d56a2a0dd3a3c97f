"""Rows of a set as prompts to answer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.storage.dataset import BuiltSet
from lightning_sft.data.types import GenerationRow

Answered = Literal["val", "test", "predict"]


def prompts(
    built: BuiltSet, encoder: Encoder, stage: Answered, limit: int | None = None, skipped: Collection[int] = ()
) -> list[GenerationRow]:
    """Return rows of a set as prompts, at most ``limit``, spread evenly over the set and its sources.

    Args:
        built: the set.
        encoder: turns a row into the ids of its prompt.
        stage: name of the set.
        limit: the most rows; None is all.
        skipped: sources whose rows are left out.
    """
    sources = built.dataset.sources
    able = [i for i, example in enumerate(built.examples) if example.has_prompt and int(sources[i]) not in skipped]
    if limit is not None and limit < len(able):
        able = [able[i * len(able) // limit] for i in range(limit)]
    rows: list[GenerationRow] = []
    for index in able:
        example = built.examples[index]
        text, ids = encoder.prompt(example)
        rows.append(GenerationRow(index, int(sources[index]), ids, text, example.reference, stage))
    return rows
