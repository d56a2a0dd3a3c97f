"""The rows that the training benchmarks run on: GSM8K where it is given, else text of the same lengths."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_sft.data import SFTDataModule

# Lengths of GSM8K under SmolLM2's tokenizer without the chat template: mean and standard deviation of the log of the
# number of tokens, for questions and answers, measured over the training set.
QUESTION, ANSWER = (4.04, 0.35), (4.74, 0.42)
WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they".split()
)


def made_up(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and completions of common words, with lengths like GSM8K's."""
    draw = random.Random(seed)

    def text(mean: float, deviation: float) -> str:
        return " ".join(draw.choices(WORDS, k=max(3, round(draw.lognormvariate(mean, deviation)))))

    return [{"prompt": text(*QUESTION), "completion": text(*ANSWER)} for _ in range(count)]


def read(path: Path) -> list[dict[str, str]]:
    """Read JSON lines with the columns question and answer, or prompt and completion."""
    rows = (json.loads(line) for line in path.read_text().splitlines() if line.strip())
    return [
        {"prompt": r.get("prompt", r.get("question")), "completion": r.get("completion", r.get("answer"))} for r in rows
    ]


def write(folder: Path, given: Path | None, count: int | None, seed: int = 0) -> Path:
    """Write rows in a random but fixed order as ``rows.jsonl``; ``count`` None means all."""
    rows = read(given) if given else made_up(count or 7473, seed)
    random.Random(seed).shuffle(rows)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
    return path


def encode(path: Path, tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    """Return the same rows as ids and labels (-100 where untrained), as the data module makes them."""
    data = SFTDataModule(str(path), tokenizer=tokenizer, shuffle=False, max_length=max_length, truncation="drop")
    data.setup("fit")
    return [
        {
            "input_ids": row.ids.tolist(),
            "labels": [int(i) if t else -100 for i, t in zip(row.ids, row.trained, strict=True)],
        }
        for row in map(data.dataset("train").__getitem__, range(len(data.dataset("train"))))
    ]


def facts(rows: Sequence[dict[str, list[int]]]) -> str:
    """Say how many rows and tokens there are, and what share is supervised."""
    tokens = sum(len(row["input_ids"]) for row in rows)
    trained = sum(label != -100 for row in rows for label in row["labels"])
    longest = max(len(row["input_ids"]) for row in rows)
    return (
        f"{len(rows)} rows, {tokens / len(rows):.0f} tokens each, longest {longest}, {trained / tokens:.0%} supervised"
    )
