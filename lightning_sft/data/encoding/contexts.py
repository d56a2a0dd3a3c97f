"""Weights of single tokens by what stands before them: files of contexts, as of words that stay outranked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lightning_sft.data.types import Encoded
from lightning_sft.errors import UserError
from lightning_sft.files import file_digest

MOST_IDS = 2**31


class ContextWeights:
    """Weighs the trained tokens that follow contexts named in files.

    A line of a file is a JSON object with ``context_ids``, all token ids of a row up to the token, and ``correct_id``,
    the token. A line whose ``set`` says that it is of a validation set is passed over, other keys are not read. A
    context that stands in a file twice counts once, files multiply.

    Args:
        files: file -> what the loss of its tokens is multiplied by.

    Attributes:
        found: file -> how many of its contexts were met so far with their token behind them and trained, how many it
            holds, and how many lines of validation sets.

    Raises:
        UserError: a file cannot be read, or a line of it is something else.
    """

    def __init__(self, files: Mapping[str, float]) -> None:
        read = {file: _read(file) for file in files}
        self.found = {file: [0, len(contexts), others] for file, (contexts, others) in read.items()}
        contexts = [(file, *context) for file, (held, _) in read.items() for context in held]
        self._files = [file for file, _, _ in contexts]
        self._weights = [np.float32(files[file]) for file in self._files]
        self._contexts = [np.array(context, np.int32) for _, context, _ in contexts]
        self._met = np.zeros(len(contexts), np.bool_)
        self._lengths = np.array([len(context) for context in self._contexts], np.int64)
        self._last = np.array([context[-1] for context in self._contexts], np.int32)
        self._tokens = np.array([token for _, _, token in contexts], np.int32)

    def __call__(self, row: Encoded) -> Encoded:
        """Return a row with the weights of its contexts; what weighs 0 is not trained."""
        weights = None
        for i in self._candidates(row):
            at = int(self._lengths[i])
            if not row.trained[at] or not np.array_equal(row.ids[:at], self._contexts[i]):
                continue
            if weights is None:
                weights = np.ones(len(row.ids), np.float32) if row.weights is None else row.weights.copy()
            weights[at] *= self._weights[i]
            self.found[self._files[i]][0] += not self._met[i]
            self._met[i] = True
        return row if weights is None else replace(row, trained=row.trained & (weights != 0), weights=weights)

    def _candidates(self, row: Encoded) -> list[int]:
        """Return which contexts end like the row does where it has their token: few are left to compare whole."""
        if not len(self._lengths) or len(row.ids) < 2:
            return []
        at = np.minimum(self._lengths, len(row.ids) - 1)
        ends_alike = (row.ids[at] == self._tokens) & (row.ids[at - 1] == self._last)
        kept: list[int] = np.flatnonzero(ends_alike & (self._lengths < len(row.ids))).tolist()
        return kept


def contexts_identity(files: Mapping[str, float]) -> list[Any]:
    """Return what the weights of these files depend on, as plain data: names, what stands in them, and the weights.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        return [[file, file_digest(Path(file).expanduser()), float(weight)] for file, weight in files.items()]
    except OSError as e:
        raise UserError(_UNREADABLE.format(e.filename, e.strerror or e)) from e


Context = tuple[tuple[int, ...], int]
"""The ids before a token, and the token."""


def _read(file: str) -> tuple[list[Context], int]:
    """Return the contexts of a file, each once, in order, and the number of its lines of validation sets."""
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(_UNREADABLE.format(file, e)) from e
    found = [_parse(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    return list(dict.fromkeys(context for context in found if context is not None)), found.count(None)


def _parse(line: str, where: str) -> Context | None:
    """Return the context of a line; None where it is of a validation set."""
    try:
        row = json.loads(line)
    except ValueError as e:
        raise UserError(_MALFORMED.format(where, f"is no JSON: {e}")) from e
    given: dict[str, Any] = row if isinstance(row, dict) else {}
    context, token = given.get("context_ids"), given.get("correct_id")
    if not (isinstance(context, list) and context and all(map(_is_id, [*context, token]))):
        raise UserError(_MALFORMED.format(where, f"has context_ids={context!r:.80} and correct_id={token!r:.80}"))
    assert isinstance(token, int)
    validates = str(given.get("set")).partition("/")[0] == "val"
    return None if validates else (tuple(context), token)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_IDS


_UNREADABLE = (
    "data.loss_weights.contexts names {}, which cannot be read: {}. Give a file of JSON lines with context_ids and "
    "correct_id."
)
_MALFORMED = (
    "data.loss_weights.contexts: {} {}. Needed on every line: context_ids, a list of at least one token id, and "
    "correct_id, a token id."
)
