"""CSV, Parquet and Arrow files -> records; a damaged part costs its own rows and no others."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_sft.data.types import BadRow, Record

if TYPE_CHECKING:
    import pyarrow as pa


def read_csv(
    path: Path, source: Iterator[tuple[int, str] | BadRow], max_row_bytes: int, tabs: bool = False
) -> Iterator[Record | BadRow]:
    """Yield the rows of a CSV file with a header line.

    A row is complete when its quotes are balanced. If it cannot be parsed, or the quotes stay open for
    ``max_row_bytes``, only its first line is given up and reading goes on at the next one: an open quote does not
    swallow the rows after it.
    """
    header: list[str] | None = None
    waiting: list[tuple[int, str]] = []
    ended = False
    while True:
        if not waiting:
            line = next(source, None)
            if line is None:
                return
            if isinstance(line, BadRow):
                yield line
                continue
            waiting.append(line)
        taken, size = 0, 0
        quotes = 0
        broken: BadRow | None = None
        while True:
            quotes += waiting[taken][1].count('"')
            size += len(waiting[taken][1])
            taken += 1
            if quotes % 2 == 0 or size > max_row_bytes:
                break
            if taken == len(waiting):
                line = None if ended else next(source, None)
                if line is None or isinstance(line, BadRow):
                    ended, broken = line is None, line
                    break
                waiting.append(line)
        number = waiting[0][0]
        where = f"{path}:{number}"
        text = "\n".join(line for _, line in waiting[:taken])
        if quotes % 2 == 0 and not text.strip():
            del waiting[:taken]
            continue
        fields, reason = _parse(text, tabs) if quotes % 2 == 0 else ([], "a quote is not closed")
        if reason is None and header is not None and len(fields) != len(header):
            reason = f"the row has {len(fields)} fields, the header {len(header)}"
        if reason is not None:
            yield BadRow(where, f"invalid CSV: {reason}", waiting[0][1])
            del waiting[0]
        else:
            if header is None:
                header = fields
            else:
                yield Record(where, dict(zip(header, fields, strict=True)))
            del waiting[:taken]
        if broken is not None:
            yield broken


def _parse(text: str, tabs: bool) -> tuple[list[str], str | None]:
    """Return the fields of one record and, where it cannot be parsed, why."""
    limit = csv.field_size_limit(len(text) + 1)
    try:
        rows = list(csv.reader([text], delimiter="\t" if tabs else ",", strict=True))
        return rows[0], None if len(rows) == 1 else "a line end outside quotes"
    except csv.Error as e:
        return [], str(e)
    finally:
        csv.field_size_limit(limit)


def read_parquet(path: Path) -> Iterator[Record | BadRow]:
    """Yield the rows of a Parquet file, row group by row group; an unreadable group is one bad row."""
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except Exception as e:  # pyarrow's readers raise several kinds for damaged bytes
        yield BadRow(str(path), f"not a readable Parquet file: {_first_line(e)}")
        return
    with file:
        index = 0
        for group in range(file.num_row_groups):
            try:
                rows = file.read_row_group(group).to_pylist()
            except Exception as e:
                yield BadRow(f"{path}, row group {group}", f"cannot be read: {_first_line(e)}")
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
            for batch in _batches(file):
                for row in batch.to_pylist():
                    yield Record(f"{path}[{index}]", row)
                    index += 1
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as e:
        yield BadRow(f"{path}[{index}]", f"cannot be read from here on: {_first_line(e)}")


def _batches(file: pa.OSFile) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowException:
            # The footer is damaged; the batches before it are written as in a stream, after eight bytes.
            file.seek(8)
        else:
            yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
            return
    yield from pa.ipc.open_stream(file)


def _first_line(e: Exception) -> str:
    return str(e).splitlines()[0] if str(e) else type(e).__name__
