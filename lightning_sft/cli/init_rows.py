"""The rows that `lightning init` was given: which columns they have, how many they are, whether there are any."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_sft.cli.front.meant import is_data_path
from lightning_sft.cli.front.names import nearest
from lightning_sft.data.reading.formats import REQUIRED
from lightning_sft.data.reading.guess import Guess, an_example, count_rows, first_bad, first_rows, guess, in_braces
from lightning_sft.data.reading.sniff import columns_hint
from lightning_sft.data.types import printable
from lightning_sft.errors import UserError
from lightning_sft.places import DATA_KINDS, SUFFIXES, data_files, suffix

#: files of a folder that are looked into
_LOOKED_INTO = 5
#: characters of a row in a message
_SHOWN = 300


def map_columns(
    key: str, values: dict[str, Any], arguments: Sequence[str], default: str | None = None
) -> Iterator[str]:
    """Look at the first rows of a file, map its columns to ours where they have other names, and say what was found.

    Args:
        key: ``data.train``, or another set.
        values: of all keys; a path becomes a `Source` with its columns.
        arguments: of the verb, for the message.
        default: the path where none is given.

    Raises:
        UserError: the file is not there, no row can be read, or nothing tells which column asks and which answers;
            says how to.
    """
    asked = _source_arguments(values.get(key, default))
    path = asked.get("path")
    if not isinstance(path, str) or not is_data_path(key, path):
        return
    try:
        files = data_files(path)
    except UserError as error:
        if key in values:
            raise UserError(f"{key} is {path!r}. {error} Nothing was written.") from error
        there = sorted(file.name for file in Path().iterdir() if suffix(file) in SUFFIXES and suffix(file) != ".txt")
        here = f" Here are {', '.join(there[:8])}: --train FILE takes one." if there else ""
        yield f"No rows were named: put yours into {path}, or change {key}.{here} Allowed: {DATA_KINDS}."
        return
    if not files:  # a name on the hub
        return
    yield from _several(files, path)
    first = next((file for file in files if first_rows(file)), None)
    if first is None:
        raise UserError(_no_row(files))
    if asked.get("format", "auto") != "auto":  # somebody who knows
        return
    rows = first_rows(first)
    if "columns" in asked:
        _require_columns(asked["columns"], rows, first)
        return
    found = guess(rows)
    if (found is None or found.format == "text") and (hint := columns_hint(rows[0])):
        raise UserError(f"{first} has the columns {', '.join(map(str, rows[0]))}. {hint} Nothing was written.")
    if found is None:
        example = in_braces(an_example(rows))
        again = shlex.join(["lightning", "init", *arguments, f"--{key.removeprefix('data.')}.columns", example])
        raise UserError(
            f"{first} has the columns {', '.join(map(str, rows[0]))}, and their names do not tell which of them "
            "asks and which answers. Nothing was written. Say it, for example (our name: the name in your file):\n"
            f"  {again}\n"
            f"The first row: {printable(json.dumps(rows[0], ensure_ascii=False, default=str), _SHOWN)}"
        )
    if not found.readable:
        raise UserError(
            f"{first} has no row that can be read, as far as {len(rows)} of them show: {found.trouble}. Nothing was "
            "written."
        )
    yield f"{first}: {_in_words(found)}"
    if found.trouble:
        yield f"  {found.trouble}. `lightning inspect` says how many rows are like it."
    if found.columns:
        values[key] = {"class_path": "Source", "init_args": {**asked, "path": path, "columns": found.columns}}


def training_rows(value: Any, most: int) -> int | None:
    """Return how many rows files of training rows have, counted up to some number; None where they are not files.

    Args:
        value: of ``data.train``.
        most: where counting ends.
    """
    path = _source_arguments(value).get("path")
    if not isinstance(path, str):
        return None
    try:
        files = data_files(path) if is_data_path("data.train", path) else []
    except UserError:
        return None
    return count_rows(files, most) if files else None


def _source_arguments(value: Any) -> dict[str, Any]:
    """Return the arguments of a `Source` of rows, which a path by itself stands for, too; {} of any other class."""
    if not isinstance(value, dict):
        return {"path": value}
    is_source = str(value.get("class_path")).rpartition(".")[2] == "Source"
    return dict(value.get("init_args", {})) if is_source else {}


def _no_row(files: Sequence[Path]) -> str:
    """Return why no row of these files can be read."""
    bad = next((bad for file in files if (bad := first_bad(file)) is not None), None)
    names = _names(files)
    if bad is not None:
        return f"{names} has no row that can be read: {bad.where}: {bad.reason.rstrip('.')}. Nothing was written."
    return f"{names} has no rows. Give a file with a row a line, or another path. Nothing was written."


def _several(files: Sequence[Path], path: str) -> Iterator[str]:
    """Say which files a folder or a pattern stands for, and which of them are unlike the first."""
    if len(files) < 2:
        return
    kinds = Counter(suffix(file) for file in files)
    counted = " and ".join(f"{count} {ending}" for ending, count in kinds.most_common())
    yield f"{path} stands for {len(files)} files ({counted}), which are read one after the other: {_names(files)}."
    columns = {file: [*map(str, rows[0])] if (rows := first_rows(file)) else [] for file in files[:_LOOKED_INTO]}
    unlike = [file for file in columns if set(columns[file]) != set(columns[files[0]])]
    some = files[0].parent / f"*{files[0].suffix}"
    for file in unlike:
        yield (
            f"  {file} has other columns ({', '.join(columns[file]) or 'no row that can be read'}) than {files[0]} "
            f"({', '.join(columns[files[0]])}). Leave out what is not meant, such as --train '{some}', or give each "
            "kind as a source of its own."
        )


def _names(files: Sequence[Path]) -> str:
    more = f" and {len(files) - _LOOKED_INTO} more" if len(files) > _LOOKED_INTO else ""
    return ", ".join(file.name for file in files[:_LOOKED_INTO]) + more


def _require_columns(columns: object, rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Raise if a mapping names a column that none of the first rows has."""
    there = {str(name): None for row in rows for name in row}
    for name in columns.values() if isinstance(columns, dict) else ():
        if isinstance(name, str) and name not in there:
            meant = nearest(name, there)
            raise UserError(
                f"{file} has no column {name!r}{'' if meant is None else f', but {meant!r}'}. Its columns: "
                f"{', '.join(there)}. Nothing was written."
            )


def _in_words(found: Guess) -> str:
    if found.columns:
        said = ", ".join(f"{theirs} is read as {ours}" for ours, theirs in found.columns.items())
    else:
        said = f"rows with {' and '.join(REQUIRED[found.format])}"
    unread = ", ".join(name or "a column without a name" for name in found.unused)
    return f"{said}; nothing reads {unread}." if unread else f"{said}."
