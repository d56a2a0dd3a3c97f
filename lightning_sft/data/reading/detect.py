"""The format of a file's rows: the one whose columns most of them have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lightning_sft.data.reading import formats
from lightning_sft.data.reading.guess import an_example, guess, in_braces
from lightning_sft.data.reading.sniff import columns_hint
from lightning_sft.data.spool import Spool
from lightning_sft.data.types import BadRow, Record, printable
from lightning_sft.errors import UserError

LOOKED_AT = 100
"""Rows whose columns are named where no format has them."""


def detect_format(
    table: Iterable[Record | BadRow],
    mapped: Callable[[dict[str, Any]], dict[str, Any]],
    columns: Mapping[str, str],
    answers: bool,
) -> tuple[str, Spool[Record | BadRow]]:
    """Return the format that most rows have, and the rows, which all had to be seen for it.

    Args:
        table: the rows, read once.
        mapped: a row -> the same under the standard column names.
        columns: the mapping, for messages.
        answers: whether rows must have an answer.

    Raises:
        UserError: no row has the columns of a format.
    """
    rows: Spool[Record | BadRow] = Spool()
    first: list[Record] = []
    counts = Counter[str | None]()
    for row in table:
        rows.append(row)
        if isinstance(row, Record):
            counts[formats.detect(mapped(row.row), answers)] += 1
            if len(first) < LOOKED_AT:
                first.append(row)
    counts.pop(None, None)
    if counts:
        return str(counts.most_common(1)[0][0]), rows
    if not first:
        return "messages", rows  # no row to convert: every one is reported as bad
    present = dict.fromkeys(column for row in first for column in row.row)
    found = printable(", ".join(map(str, present)), 400) or "(none)"
    known = "; ".join(f"{name}: {', '.join(formats.needed(name, answers))}" for name in formats.REQUIRED)
    under = f" under columns={columns}" if columns else ""
    said = f"{first[0].where}: no known format has the columns {found}{under}. "
    if not columns and (hint := columns_hint(first[0].row)):
        raise UserError(f"{said}{hint} Formats and their columns are: {known}.")
    example = in_braces(_example([row.row for row in first], answers))
    raise UserError(
        f"{said}Formats and their columns are: {known}. Map the columns, for example "
        f"`columns: {example}` beside the path of a Source. On the command line: --train FILE "
        f"--train.columns '{example}'; for rows to test on, and those of an audit, --data.test.columns."
    )


def _example(rows: list[dict[str, Any]], answers: bool) -> dict[str, str]:
    """Return a mapping that fits as far as can be guessed."""
    guessed = guess(rows) if answers else None
    if guessed is not None and guessed.columns:
        return guessed.columns
    return an_example(rows)
