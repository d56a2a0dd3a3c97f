"""What a file holds that its ending does not say, and what is probably wrong with rows that cannot be read."""

from __future__ import annotations

import ast
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_sft.errors import UserError
from lightning_sft.places import COMPRESSIONS, suffix

#: first bytes of a file -> what it holds, the endings that are right, and what to do
_HOLDS: tuple[tuple[bytes, str, tuple[str, ...], str], ...] = (
    (b"PAR1", "Parquet", (".parquet",), "Rename it to {stem}.parquet"),
    (b"ARROW1", "Arrow", (".arrow",), "Rename it to {stem}.arrow"),
    (b"\x1f\x8b", "data compressed by gzip", (), "Rename it to {name}.gz"),
    (b"\x28\xb5\x2f\xfd", "data compressed by zstd", (), "Rename it to {name}.zst"),
    (b"\xfd7zXZ", "data compressed by xz", (), "Rename it to {name}.xz"),
    (b"PK\x03\x04", "a ZIP archive, as Excel's files are", (), "Unpack it, or save it as CSV in UTF-8"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the rows", (), "Fetch them: git lfs pull"),
    (b"<!doctype html", "a web page", (), "Download the file itself, not the page about it"),
    (b"<html", "a web page", (), "Download the file itself, not the page about it"),
)
#: columns whose names are easily mistyped
_COLUMNS = ("messages", "conversations", "prompt", "completion", "instruction", "output")
#: those of them that hold lists of messages
_CHATS = ("messages", "conversations")


def require_as_named(path: Path) -> None:
    """Raise if a file plainly holds something else than its ending says.

    Args:
        path: of a file, which may be compressed: then it is not looked into.

    Raises:
        UserError: says what it holds, and what to do.
    """
    kind = suffix(path)
    if path.suffix.lower() in COMPRESSIONS or kind == ".txt":
        return
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError:
        return  # opening it says what is wrong
    for magic, holds, endings, what in _HOLDS:
        if start.lower().startswith(magic.lower()) and kind not in endings:
            how = what.format(name=path.name, stem=path.stem)
            raise UserError(f"{path} ends in {kind} and holds {holds}. {how}.")
    if kind in (".parquet", ".arrow") and start.lstrip()[:1] in (b"{", b"["):
        raise UserError(f"{path} ends in {kind} and holds JSON. Rename it to {path.stem}.jsonl.")


def json_hint(text: str) -> str:
    """Return what is probably wrong with a line that is no JSON, behind a semicolon; empty where nothing tells.

    Args:
        text: of the line.
    """
    line = text.strip()
    if line.endswith(",") and _is_json(line[:-1]):
        return "; a line ends with a comma: leave it out, or write one array and call the file .json"
    if line in ("{", "["):
        return "; the row goes over several lines: call the file .json, or write a row a line"
    if line.startswith("{'") and _is_python(line):
        return "; this is how Python prints a dict: write rows by json.dumps"
    return ""


def columns_hint(row: Mapping[str, Any]) -> str:
    """Return what is plainly wrong with the columns of a row, in a sentence; empty otherwise.

    Args:
        row: column -> value.
    """
    names = [str(name) for name in row]
    if len(names) == 1 and (sign := next((sign for sign in ";\t|" if sign in names[0]), None)) is not None:
        return f"The header stands in quotes as a whole, so {sign!r} separates nothing there: save it without them."
    if {"chosen", "rejected"} <= set(names):
        return "These are preferences: --train.columns '{completion: chosen}' learns from what was chosen."
    if "input_ids" in names:
        return "These are tokens already: give the text, which is tokenised with the model's own tokenizer."
    if {"role", "content"} <= set(names) or {"from", "value"} <= set(names):
        return "This is one message: a row is a whole conversation, {messages: [...]}."
    if names and all(name.isdecimal() for name in names) and all(isinstance(v, Mapping) for v in row.values()):
        return "This is a mapping of numbers to rows: write the rows as a list."
    for name, value in row.items():
        close = difflib.get_close_matches(str(name), _COLUMNS, n=1, cutoff=0.85)
        is_text = isinstance(value, str) and not value.lstrip().startswith("[")  # a list may stand as JSON
        if close and close[0] not in names and not (close[0] in _CHATS and is_text):
            return (
                f"Is {name!r} meant to be {close[0]!r}? Rename it, or map it: --train.columns '{{{close[0]}: {name}}}'"
                "; for rows to test on, and those of an audit, --data.test.columns."
            )
    return ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_python(text: str) -> bool:
    try:
        return isinstance(ast.literal_eval(text), dict)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
