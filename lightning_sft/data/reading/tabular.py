"""CSV, Parquet and Arrow files -> records; a damaged part costs its own rows and no others."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sft.data.reading.columns import plain_rows
from lightning_sft.data.types import BadRow, Record
from lightning_sft.errors import first_line

if TYPE_CHECKING:
    import pyarrow as pa

#: what may separate the fields of a table -> what it is called
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_csv(
    path: Path, source: Iterator[tuple[int, str] | BadRow], max_row_bytes: int, tabs: bool = False
) -> Iterator[Record | BadRow]:
    """Yield the rows of a CSV file with a header line.

    A row is complete when its quotes are balanced. If it cannot be parsed, or the quotes stay open for
    ``max_row_bytes``, only its first line is given up and reading goes on at the next one: an open quote does not
    swallow the rows after it.

    The header tells what separates the fields (`delimiter_of`); a line says so where it is not what the file's
    ending says.
    """
    usual = "\t" if tabs else ","
    header: list[str] | None = None
    lines = _Lines(source, usual)
    while (row := lines.row(max_row_bytes)) is not None:
        yield from lines.bad
        lines.bad.clear()
        if not row:
            continue
        number, text = row[0][0], "\n".join(line for _, line in row)
        if not text.strip():
            lines.drop(len(row))
            continue
        if header is None:
            lines.delimiter = delimiter_of(text, usual)
        fields, reason = _parse(text, lines.delimiter)
        if reason is None and header is not None and len(fields) != len(header):
            reason = f"the row has {len(fields)} fields, the header {len(header)}"
            reason += "" if lines.delimiter == usual else f" (separated by {DELIMITERS[lines.delimiter]})"
        if reason is not None:
            yield BadRow(f"{path}:{number}", f"invalid CSV: {reason}", row[0][1])
            lines.drop(1)
            continue
        if header is None:
            header = fields
            if lines.delimiter != usual:
                _say(path, lines.delimiter)
        else:
            yield Record(f"{path}:{number}", dict(zip(header, fields, strict=True)))
        lines.drop(len(row))


class _Lines:
    """Lines that can be looked at before they are taken; ``bad`` are unreadable ones passed on the way."""

    def __init__(self, source: Iterator[tuple[int, str] | BadRow], delimiter: str) -> None:
        self.source = source
        self.delimiter = delimiter
        self.waiting: list[tuple[int, str]] = []
        self.bad: list[BadRow] = []

    def row(self, max_row_bytes: int) -> list[tuple[int, str]] | None:
        """Return the next lines up to where the quotes are balanced, or as far as they go; None at the end."""
        quotes = size = 0
        for taken in count(1):
            if taken > len(self.waiting):
                line = next(self.source, None)
                if line is None or isinstance(line, BadRow):
                    self.bad += [line] if line is not None else []
                    return self.waiting[:] if self.waiting or self.bad else None
                self.waiting.append(line)
            quotes += self.waiting[taken - 1][1].count('"')
            size += len(self.waiting[taken - 1][1])
            if quotes % 2 == 0 or size > max_row_bytes:
                return self.waiting[:taken]
            if taken == 1 and _parse(self.waiting[0][1], self.delimiter)[1] is None:
                return self.waiting[:1]  # a quote inside a field without quotes, such as 6" pipe
        return None

    def drop(self, lines: int) -> None:
        """Take the first lines away."""
        del self.waiting[:lines]


def delimiter_of(header: str, usual: str) -> str:
    """Return what separates the fields of a header.

    The usual sign wherever it makes several fields, so a file that is as its ending says is never read in another
    way; else the one that makes most names. Signs within quotes separate nothing. (`csv.Sniffer` guesses from how
    often signs occur, quoted or not, and finds none in a header of one column.)

    Args:
        header: the first line, with those after it that its quotes hold.
        usual: of the file's ending.
    """
    if len(_parse(header, usual)[0]) > 1:
        return usual
    names = {sign: sum(name.strip() != "" for name in _parse(header, sign)[0]) for sign in DELIMITERS}
    most = max(names, key=lambda sign: names[sign])
    return most if names[most] > 1 else usual


@lru_cache
def _say(path: Path, delimiter: str) -> None:
    """Say once what was taken, on the first of the ranks; without Lightning, which `init` does not import."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        told = f"its fields are separated by {DELIMITERS[delimiter]}, as its header tells"
        print(f"note: {path}: {told}.", file=sys.stderr)


def _parse(text: str, delimiter: str) -> tuple[list[str], str | None]:
    """Return the fields of one record and, where it cannot be parsed, why."""
    limit = csv.field_size_limit(len(text) + 1)
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
        return rows[0], None if len(rows) == 1 else "a line end outside quotes"
    except csv.Error as e:
        return [], "a quote is not closed" if "end of data" in str(e) else str(e)
    finally:
        csv.field_size_limit(limit)


def read_parquet(path: Path) -> Iterator[Record | BadRow]:
    """Yield the rows of a Parquet file, row group by row group; an unreadable group is one bad row."""
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except Exception as e:  # pyarrow's readers raise several kinds for damaged bytes
        yield BadRow(str(path), f"not a readable Parquet file: {first_line(e)}")
        return
    with file:
        index = 0
        for group in range(file.num_row_groups):
            try:
                table = file.read_row_group(group)
                rows = [*map(plain_rows(table.schema), table.to_pylist())]
            except Exception as e:
                yield BadRow(f"{path}, row group {group}", f"cannot be read: {first_line(e)}")
                rows = []
            for offset, row in enumerate(rows):
                yield Record(f"{path}[{index + offset}]", row)
            index += file.metadata.row_group(group).num_rows


def read_arrow(path: Path) -> Iterator[Record | BadRow]:
    """Yield the rows of an Arrow file or stream (what ``datasets`` writes), batch by batch."""
    import pyarrow as pa

    index = 0
    try:
        with pa.OSFile(str(path)) as file:
            batches, whole = _batches(file)
            for batch in batches:
                for row in map(plain_rows(batch.schema), batch.to_pylist()):
                    yield Record(f"{path}[{index}]", row)
                    index += 1
            if not whole:
                yield BadRow(f"{path}[{index}]", "the end of the file is missing or damaged; rows may be lost")
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as e:
        yield BadRow(f"{path}[{index}]", f"cannot be read from here on: {first_line(e)}")


def _batches(file: pa.OSFile) -> tuple[Iterator[pa.RecordBatch], bool]:
    """Return the batches of a file or stream, and whether the file's footer is whole."""
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic != b"ARROW1":
        return iter(pa.ipc.open_stream(file)), True
    try:
        reader = pa.ipc.open_file(file)
    except pa.ArrowException:
        file.seek(8)  # the batches stand there as in a stream
        return iter(pa.ipc.open_stream(file)), False
    return (reader.get_batch(i) for i in range(reader.num_record_batches)), True
