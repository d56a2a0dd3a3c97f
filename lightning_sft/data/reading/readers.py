"""Files -> records, one row at a time; what cannot be read becomes a `BadRow` with file, line and reason."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from typing_extensions import override

from lightning_sft.data.codes import Code
from lightning_sft.data.reading import tabular
from lightning_sft.data.reading.sniff import json_hint, require_as_named
from lightning_sft.data.types import BadRow, Record
from lightning_sft.errors import UserError
from lightning_sft.places import COMPRESSIONS, SUFFIXES, suffix

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)
RESYNC_ATTEMPTS = 1000

IsRow = Callable[[dict[str, Any]], bool]
"""Whether an object has the columns of a row; used to find the next row after a broken one."""


def read_file(path: Path, is_row: IsRow, max_row_bytes: int) -> Iterator[Record | BadRow]:
    """Yield the rows of one file.

    Args:
        path: a file with one of `SUFFIXES`, also compressed with one of `COMPRESSIONS`.
        is_row: see `IsRow`.
        max_row_bytes: longer rows are bad rows.

    Raises:
        UserError: the file cannot be opened, its kind is unknown, or it holds something else than its ending says.
    """
    kind = suffix(path)
    if kind not in SUFFIXES:
        raise UserError(
            f"{path}: unknown kind of file {kind or '(no suffix)'!r}. Known are {', '.join(SUFFIXES)}, also compressed "
            f"with {', '.join(COMPRESSIONS)}. Rename or convert the file."
        )
    require_as_named(path)
    if kind in (".parquet", ".arrow"):
        yield from tabular.read_parquet(path) if kind == ".parquet" else tabular.read_arrow(path)
        return
    with open_file(path) as stream:
        if (kind == ".json" and not _is_lines(path)) or (kind in (".jsonl", ".ndjson") and _is_array(path)):
            yield from read_json(path, stream, is_row)
        elif kind in (".csv", ".tsv"):
            yield from tabular.read_csv(path, lines(path, stream, max_row_bytes), max_row_bytes, kind == ".tsv")
        else:
            yield from read_lines(path, lines(path, stream, max_row_bytes), as_text=kind == ".txt")


def open_file(path: Path) -> IO[bytes]:
    """Open ``path`` for reading bytes, decompressed."""
    try:
        ending = path.suffix.lower()
        if ending == ".gz":
            return io.BufferedReader(_OneRead(gzip.GzipFile(path)))
        if ending == ".bz2":
            return io.BufferedReader(_OneRead(bz2.BZ2File(path)))
        if ending == ".xz":
            return io.BufferedReader(_OneRead(lzma.LZMAFile(path)))
        if ending == ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
        return path.open("rb")
    except OSError as e:
        raise UserError(f"{path} cannot be opened: {e.strerror or e}. Check the path and its permissions.") from e


class _OneRead(io.RawIOBase):
    """Hands out what a decompressor has before it goes on, so that an error costs nothing before it."""

    def __init__(self, file: gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile) -> None:
        self.file = file

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        data = self.file.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    @override
    def close(self) -> None:
        self.file.close()
        super().close()


def lines(path: Path, stream: IO[bytes], limit: int) -> Iterator[tuple[int, str] | BadRow]:
    """Yield the lines of ``stream`` with their number, from 1, decoded and without the line end.

    Lines that are too long, that are not UTF-8, and what cannot be decompressed come as `BadRow`.
    """
    number = 0
    while True:
        number += 1
        where = f"{path}:{number}"
        try:
            line = stream.readline(limit + 1)
            size = len(line)
            while line and not line.endswith(b"\n") and (rest := stream.readline(1 << 20)):
                size, line = size + len(rest), rest if size + len(rest) > limit + 1 else line + rest
        except READ_ERRORS as e:
            yield BadRow(where, f"the file cannot be read from here on: {e or type(e).__name__}")
            return
        if not line:
            return
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in line:
                yield BadRow(where, "the file is UTF-16; convert it to UTF-8")
                return
            line = line.removeprefix(b"\xef\xbb\xbf")
        if size > limit:
            yield BadRow(where, f"the line has {size} bytes, more than max_row_bytes={limit}", code=Code.TOO_LARGE)
            continue
        try:
            yield number, line.decode().rstrip("\r\n")
        except UnicodeDecodeError as e:
            yield BadRow(where, f"not UTF-8: {e.reason} at byte {e.start}", line.decode(errors="replace"))


def read_lines(path: Path, source: Iterator[tuple[int, str] | BadRow], as_text: bool) -> Iterator[Record | BadRow]:
    """Yield one row a line: JSON objects, or plain text as the column ``text``. Blank lines are no rows."""
    for line in source:
        if isinstance(line, BadRow):
            yield line
            continue
        number, text = line
        where = f"{path}:{number}"
        if not text.strip():
            continue
        if as_text:
            yield Record(where, {"text": text})
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as e:
            yield BadRow(where, _json_reason(e) + json_hint(text), text)
            continue
        yield _record(where, row, text)


def _json_reason(e: Exception) -> str:
    if isinstance(e, json.JSONDecodeError):
        return f"invalid JSON: {e.msg} (column {e.colno})"
    return f"invalid JSON: {'too deeply nested' if isinstance(e, RecursionError) else e}"


def _record(where: str, row: object, text: str) -> Record | BadRow:
    if isinstance(row, dict):
        return Record(where, row)
    return BadRow(where, f"a row must be a JSON object, got {type(row).__name__}", text)


def _is_lines(path: Path) -> bool:
    """Whether a ``.json`` file holds one object a line."""
    with open_file(path) as stream:
        try:
            heads = [line.lstrip()[:1] for line in (stream.readline(1 << 16) for _ in range(8)) if line.strip()]
        except READ_ERRORS:
            return True
    return heads[:1] == [b"{"] and all(head == b"{" for head in heads) and len(heads) > 1


def _is_array(path: Path) -> bool:
    """Whether a ``.jsonl`` file is one JSON array of objects after all."""
    with open_file(path) as stream:
        try:
            head = stream.read(1 << 12).removeprefix(b"\xef\xbb\xbf").split()
        except READ_ERRORS:
            return False
    return b"".join(head[:2])[:2] == b"[{"


def read_json(path: Path, stream: IO[bytes], is_row: IsRow) -> Iterator[Record | BadRow]:
    """Yield the rows of a JSON file: an array of objects, one object, or an object with one list of objects."""
    try:
        data = stream.read()
    except READ_ERRORS as e:
        yield BadRow(str(path), f"the file cannot be read: {e or type(e).__name__}")
        return
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        yield BadRow(str(path), "the file is UTF-16; convert it to UTF-8")
        return
    text = data.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        yield from _scan(path, text, is_row)
        return
    if isinstance(whole, dict) and not is_row(whole):
        tables = [v for v in whole.values() if isinstance(v, list) and v and all(isinstance(x, dict) for x in v)]
        whole = tables[0] if len(tables) == 1 else whole
    for i, row in enumerate(whole if isinstance(whole, list) else [whole]):
        yield _record(f"{path}[{i}]", row, "")


def _scan(path: Path, text: str, is_row: IsRow) -> Iterator[Record | BadRow]:
    """Yield what can be decoded of a damaged JSON array, value after value.

    After a broken value the next object that has the columns of a row is looked for; the number of attempts is
    bounded, so that no file can keep this busy for long.
    """
    decoder = json.JSONDecoder()
    start = len(text) - len(text.lstrip())
    is_array = text.startswith("[", start)
    at, line, counted = start + is_array, 1, 0
    while True:
        while at < len(text) and (text[at].isspace() or text[at] == ","):
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        if at == len(text):
            if is_array:
                yield BadRow(f"{path}:{line}", "the file ends inside the array")
            return
        if text[at] == "]" and is_array:
            return
        try:
            row, end = decoder.raw_decode(text, at)
            yield _record(f"{path}:{line}", row, text[at : at + 200])
        except (ValueError, RecursionError) as e:
            reason = (
                f"invalid JSON: {e.msg} (line {e.lineno})" if isinstance(e, json.JSONDecodeError) else _json_reason(e)
            )
            yield BadRow(f"{path}:{line}", reason, text[at : at + 200])
            end = _next_row(decoder, text, at + 1, is_row)
        at = end


def _next_row(decoder: json.JSONDecoder, text: str, at: int, is_row: IsRow) -> int:
    for _ in range(RESYNC_ATTEMPTS):
        at = text.find("{", at)
        if at < 0:
            break
        try:
            row, _ = decoder.raw_decode(text, at)
            if is_row(row):
                return at
        except (ValueError, RecursionError):
            pass
        at += 1
    return len(text)
