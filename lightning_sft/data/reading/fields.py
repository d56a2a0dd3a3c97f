"""Columns of a row under our names, and values that must be of one kind: text for a tokenizer, and lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lightning_sft.data.codes import Code
from lightning_sft.data.types import BadRowError

CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
"""Control characters but for those that break lines and columns."""


def under_our_names(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return a row under the standard column names.

    Args:
        row: as it stands in the file.
        columns: standard column name -> name in the file.
    """
    taken = set(columns.values())
    rest = {k: v for k, v in row.items() if k not in taken and k not in columns}
    return {**rest, **{name: row[column] for name, column in columns.items() if column in row}}


def as_list(value: object, column: str) -> list[Any]:
    """Return ``value`` if it is a list; ``column`` is its name for the message."""
    if not isinstance(value, list):
        written = isinstance(value, str) and value.lstrip().startswith("[")
        how = " that looks like a list: write the list itself, not its text" if written else ""
        raise BadRowError(f"{column} must be a list, got {kind(value)}{how}", Code.COLUMNS)
    return value


def kind(value: object) -> str:
    """Return the kind of a JSON value in words."""
    return "nothing" if value is None else "text" if isinstance(value, str) else type(value).__name__


def optional(row: Mapping[str, Any], column: str) -> str | None:
    """Return the text of a column that may be missing or blank."""
    value = row.get(column)
    blank = value is None or (isinstance(value, str) and not value.strip())
    return None if blank else as_text(value, column)


def as_text(value: object, what: str) -> str:
    """Return ``value`` if it is text that a tokenizer can take."""
    if not isinstance(value, str):
        raise BadRowError(f"{what} must be text, got {kind(value)}", Code.TEXT)
    if not value.strip():
        raise BadRowError(f"{what} is empty", Code.TEXT)
    try:
        value.encode()
    except UnicodeEncodeError as e:
        reason = f"{what} is not valid Unicode: unpaired surrogate {value[e.start]!a} at {e.start}"
        raise BadRowError(reason, Code.TEXT) from e
    if found := CONTROL.search(value):
        raise BadRowError(f"{what} has the control character {found.group()!a} at {found.start()}", Code.TEXT)
    return value
