"""Texts of a guard set, and their tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_sft.errors import UserError
from lightning_sft.scores import IGNORED

#: The guard set that ships with the package: 193 English sentences on everyday subjects, written for it.
GENERAL = "general"


def load_texts(source: str | Path | Sequence[str], name: str) -> list[str]:
    """Return the texts of a guard set.

    Args:
        source: ``"general"``; a ``.txt`` file with a text in each line; a ``.jsonl`` file whose rows have ``text``; or
            the texts themselves.
        name: name of the set, for messages.

    Raises:
        UserError: there is no such file, a row has no text, or no text is left.
    """
    if source == GENERAL:
        lines = files("lightning_sft.guard").joinpath("general.txt").read_text(encoding="utf-8").splitlines()
    elif isinstance(source, str | Path):
        lines = _read(Path(source).expanduser(), name)
    else:
        lines = list(source)
        wrong = [text for text in lines if not isinstance(text, str)]
        if wrong:
            raise UserError(f"The guard set {name!r} holds {wrong[0]!r}, which is no text.")
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UserError(f"The guard set {name!r} holds no text. Give it at least one line.")
    return texts


def _read(path: Path, name: str) -> list[str]:
    if not path.is_file():
        raise UserError(
            f"The guard set {name!r} is {str(path)!r}, and there is no such file. Allowed: {GENERAL!r}, a .txt file "
            "with a text in each line, or a .jsonl file whose rows have `text`."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not a JSON object with `text`, as guard sets need.") from error
        texts.append(str(text))
    return texts


@dataclass(frozen=True)
class GuardBatch:
    """Some texts of a guard set, padded on the right.

    Attributes:
        input_ids: (texts, length), int64.
        attention_mask: (texts, length), int64.
        labels: (texts, length), int64; every token of a text but its first is predicted, padding is ignored.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> GuardBatch:
        """Return the batch on a device."""
        return GuardBatch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def encode_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, name: str, *, max_length: int, positions: int
) -> list[GuardBatch]:
    """Return texts as batches of like length.

    Args:
        texts: the texts.
        tokenizer: its special tokens are added as for plain text.
        name: name of the set, for messages.
        max_length: tokens of a text that are read; the rest is cut.
        positions: the most positions of a batch, padding included; a longer text is a batch of its own.

    Raises:
        UserError: no text has two tokens, so that nothing is predicted.
    """
    rows = [tokenizer(text, truncation=True, max_length=max_length).input_ids for text in texts]
    rows = sorted((row for row in rows if len(row) > 1), key=len)
    if not rows:
        raise UserError(f"No text of the guard set {name!r} has two tokens, so nothing in it is predicted.")
    batches: list[list[list[int]]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * len(row) <= positions:
            batches[-1].append(row)
        else:
            batches.append([row])
    return [_padded(batch) for batch in batches]


def _padded(rows: Sequence[Sequence[int]]) -> GuardBatch:
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return GuardBatch(ids, mask, ids.where(mask == 1, IGNORED))
