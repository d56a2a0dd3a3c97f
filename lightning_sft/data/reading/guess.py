"""Columns under other names than ours: which of them ask and which answer, guessed from their names and values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_sft.data.reading import formats
from lightning_sft.data.reading.fields import under_our_names
from lightning_sft.data.reading.readers import read_file
from lightning_sft.data.types import BadRow, BadRowError, Record

#: what public sets call the words of the user, the answer to them, what goes with a question, and the system prompt;
#: the first that a row has is taken
ASKS = (
    "prompt", "question", "instruction", "query", "problem", "user", "human", "request", "task", "input", "inputs",
    "source", "q", "message",
)  # fmt: skip
ANSWERS = (
    "completion", "answer", "response", "output", "outputs", "solution", "reply", "assistant", "target", "targets",
    "label", "chosen", "a",
)  # fmt: skip
BESIDE = ("context", "input", "inputs", "passage", "document")
SYSTEM = ("system", "systemprompt", "systemmessage")
TEXTS = ("text", "content", "document", "body", "story", "code")
#: rows at the beginning of a file whose columns are looked at, and the most bytes of one
_LOOKED_AT, _LONGEST = 20, 1 << 22


@dataclass(frozen=True)
class Guess:
    """What the columns of some rows are taken for.

    Attributes:
        format: see `formats.REQUIRED`.
        columns: our name -> the name in the rows, where the two differ.
        unused: columns that nothing reads.
        trouble: why a row cannot be read even so; empty where all can.
        readable: how many rows can.
    """

    format: str
    columns: dict[str, str]
    unused: tuple[str, ...] = ()
    trouble: str = ""
    readable: int = 0


def first_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows at the beginning of a file that can be read."""
    records = islice(read_file(file, lambda row: True, _LONGEST), _LOOKED_AT)
    return [record.row for record in records if isinstance(record, Record) and record.row]


def first_bad(file: Path) -> BadRow | None:
    """Return the first row at the beginning of a file that cannot be read; None where there is none."""
    records = islice(read_file(file, lambda row: True, _LONGEST), _LOOKED_AT)
    return next((record for record in records if isinstance(record, BadRow)), None)


def count_rows(files: Sequence[Path], most: int) -> int:
    """Return how many rows of files can be read, counted up to some number."""
    rows = (isinstance(record, Record) for file in files for record in read_file(file, lambda row: True, _LONGEST))
    return sum(islice(filter(None, rows), most))


def suits(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, answers: bool) -> bool:
    """Return whether rows have the columns of a mapping: at least as many can be read with it as without.

    Args:
        rows: column name -> value, some from the beginning of a file.
        columns: our name -> the name in the rows.
        answers: whether rows must have an answer.
    """
    mapped = 0
    for row in rows:
        has_some = any(name in row for name in columns.values())
        mapped += has_some and formats.detect(under_our_names(row, columns), answers) is not None
    return mapped > 0 and mapped >= sum(formats.detect(row, answers) is not None for row in rows)


def guess(rows: Sequence[Mapping[str, Any]]) -> Guess | None:
    """Return what most rows are taken for; None where nothing tells which of their columns ask and answer.

    Args:
        rows: column name -> value, some from the beginning of a file.
    """
    found = Counter(taken for row in rows if (taken := _guess(row)) is not None)
    if not found:
        return None
    (form, pairs), _ = found.most_common(1)[0]
    columns = {ours: theirs for ours, theirs in pairs if ours != theirs}
    unused: dict[str, None] = {}
    trouble, readable = "", 0
    for number, row in enumerate(rows):
        try:
            unused |= dict.fromkeys(formats.to_example(under_our_names(row, columns), form).unused)
            readable += 1
        except BadRowError as error:
            trouble = trouble or f"row {number}: {error}"
    return Guess(form, columns, tuple(unused), trouble, readable)


def in_braces(columns: Mapping[str, str]) -> str:
    """Return a mapping of columns as one writes it, in a file or on the command line."""
    text: str = yaml.safe_dump(dict(columns), default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.strip()


def an_example(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return how a mapping looks: of the two columns with the longest texts, in their order; ids and dates come last.

    Args:
        rows: some, of which nothing tells what asks and what answers.
    """
    texts = [str(name) for name, value in rows[0].items() if isinstance(value, str)]
    columns = {name: "".join(text for row in rows if isinstance(text := row.get(name), str)) for name in texts}
    longest = sorted(columns, key=lambda name: (_has_words(columns[name]), len(columns[name])), reverse=True)[:2]
    names = [name for name in columns if name in longest]
    others = [str(name) for name in rows[0] if name not in texts]
    names = [*names, *others, "answer", "question"][:2] if names else ["question", "answer"]
    return dict(zip(("prompt", "completion"), names, strict=True))


def _guess(row: Mapping[str, Any]) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    known = formats.detect(row)
    if known is not None:
        return known, ()
    chats = [name for name, value in row.items() if _is_chat(value)]
    if "chosen" in chats or len(chats) == 1:  # of a preferred and a rejected conversation, the preferred one
        return "messages", (("messages", "chosen" if "chosen" in chats else chats[0]),)
    texts = {_plain(name): name for name, value in row.items() if isinstance(value, str)}
    answer = _first(texts, ANSWERS)
    asks = None if answer is None else _first({k: v for k, v in texts.items() if v != answer}, ASKS)
    if answer is None or asks is None:
        alone = next(iter(texts.values())) if len(row) == 1 and texts else None
        only = _first(texts, TEXTS) or alone
        return None if only is None or (asks or answer) else ("text", (("text", only),))
    rest = {k: v for k, v in texts.items() if v not in (answer, asks)}
    beside = _first(rest, BESIDE)
    form = "prompt_completion" if beside is None else "alpaca"
    first, last = formats.REQUIRED[form]
    columns = [(first, asks), (last, answer)]
    columns += [] if beside is None else [("input", beside)]
    system = _first(rest, SYSTEM)
    columns += [] if system is None else [("system", system)]
    return form, tuple(columns)


def _is_chat(value: object) -> bool:
    """Return whether a value is a list of messages, by the keys of its first."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and any(pair <= first.keys() for pair in ({"role", "content"}, {"from", "value"}))


def _has_words(text: str) -> bool:
    """Return whether a text is mostly letters, unlike dates, numbers and most ids."""
    return 2 * sum(character.isalpha() for character in text) > len(text.replace(" ", ""))


def _plain(name: object) -> str:
    return str(name).lower().replace("_", "").replace("-", "").replace(" ", "")


def _first(present: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((present[name] for name in names if name in present), None)
