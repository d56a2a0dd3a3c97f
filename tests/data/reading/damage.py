"""A corpus of damaged files: each with its class, and the rows in it that are whole."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 6


@dataclass(frozen=True)
class Damaged:
    """One damaged file.

    Args:
        kind: class of the damage.
        name: file name.
        data: its bytes.
        whole: which of the rows 0 to ROWS - 1 are whole.
    """

    kind: str
    name: str
    data: bytes
    whole: tuple[int, ...]


def pair(i: int) -> dict[str, Any]:
    return {"prompt": f"question {i}", "completion": f"answer {i}"}


def chat(i: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]}


def turns(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def jsonl(make: Callable[[int], Any] = pair, rows: int = ROWS) -> list[bytes]:
    return [json.dumps(make(i)).encode() + b"\n" for i in range(rows)]


def without(*bad: int) -> tuple[int, ...]:
    return tuple(i for i in range(ROWS) if i not in bad)


ALL = without()


def lines_with(kind: str, bad: list[bytes], make: Callable[[int], Any] = pair) -> Iterator[Damaged]:
    """One JSONL file for each bad line, put in place of the first, a middle, and the last row in turn."""
    for number, line in enumerate(bad):
        at = (0, 3, ROWS - 1)[number % 3]
        rows = jsonl(make)
        rows[at] = line + b"\n"
        yield Damaged(kind, f"{kind}{number}.jsonl", b"".join(rows), without(at))


def dumped(rows: list[Any]) -> list[bytes]:
    return [json.dumps(row).encode() for row in rows]


def invalid_json() -> Iterator[Damaged]:
    yield from lines_with(
        "invalid_json",
        [
            b"{",
            b'{"prompt": "question", "completion": "ans',
            b'{"prompt": "question", "completion": "answer",}',
            b"{'prompt': 'question', 'completion': 'answer'}",
            b'{prompt: "question", completion: "answer"}',
            b'{"prompt": "question" "completion": "answer"}',
            b'{"prompt": "question", "completion": "answer"}}',
            b'{"prompt": "q", "completion": "a"} {"prompt": "q", "completion": "a"}',
            b"question, answer",
            b'{"prompt": "a "quoted" word", "completion": "answer"}',
            b'{"prompt": "question", "completion": undefined}',
            b'{"prompt": "bad \\x escape", "completion": "answer"}',
            b"<<<<<<< HEAD",
        ],
    )


def missing_column() -> Iterator[Damaged]:
    rows = [
        {"prompt": "q"},
        {"completion": "a"},
        {"Prompt": "q", "Completion": "a"},
        {},
        {"prompt ": "q", "completion": "a"},
    ]
    strange = [{"\ud800\x1b[31m": 1}, {"x" * 100_000: 1}]
    yield from lines_with("missing_column", dumped([*rows, *strange]))
    yield from lines_with("missing_role", dumped([{"messages": [{"content": "a"}]}, {"messages": [{}]}]), chat)


def wrong_type() -> Iterator[Damaged]:
    values: list[Any] = [None, 3, True, ["a"], {"text": "a"}, 1.5]
    yield from lines_with("wrong_type", dumped([{"prompt": "q", "completion": value} for value in values]))
    parts = [{"type": "image_url", "image_url": {"url": "x"}}]
    messages: list[Any] = ["text", {"role": "user"}, [["user", "a"]], [None], [{"role": "user", "content": parts}]]
    yield from lines_with("wrong_message", dumped([{"messages": value} for value in messages]), chat)


def empty_content() -> Iterator[Damaged]:
    rows = [
        {"prompt": "", "completion": "a"},
        {"prompt": "q", "completion": ""},
        {"prompt": "q", "completion": " \n\t "},
    ]
    yield from lines_with("empty_content", dumped(rows))
    empty = [turns(("user", "q"), ("assistant", "")), turns(("user", " "), ("assistant", "a")), {"messages": []}]
    yield from lines_with("empty_message", dumped(empty), chat)


def surrogates() -> Iterator[Damaged]:
    texts = ["\\ud800", "a\\udc00b", "\\udc00\\ud800", "\\ud83d \\ude00"]
    rows = [f'{{"prompt": "q", "completion": "{text}"}}'.encode() for text in texts]
    yield from lines_with("unpaired_surrogate", rows)


def controls() -> Iterator[Damaged]:
    escapes = ["\\u0000", "\\u0007", "\\u001b[31m", "\\b", "\\u007f", "\\u0090"]
    rows = [f'{{"prompt": "q", "completion": "a{text}"}}'.encode() for text in escapes]
    yield from lines_with("control_character", [*rows, b'{"prompt": "q", "completion": "a\x00b"}', b"\x00" * 40])


def encodings() -> Iterator[Damaged]:
    latin = [f'{{"prompt": "q", "completion": "{text}"}}'.encode("latin-1") for text in ("café", "naïve", "Straße")]
    yield from lines_with("not_utf8", [*latin, b"\xff\xfe\xfd", b'{"prompt": "\xc3", "completion": "cut"}'])
    text = b"".join(jsonl()).decode()
    for name in ("utf-16", "utf-16-le", "utf-32"):
        yield Damaged("other_encoding", f"{name}.jsonl", text.encode(name), ())
    yield Damaged("other_encoding", "utf-16.json", json.dumps([pair(i) for i in range(ROWS)]).encode("utf-16"), ())
    array = json.dumps([pair(i) for i in range(ROWS)], indent=1).encode().replace(b"answer 2", b"caf\xe9")
    yield Damaged("not_utf8", "latin.json", array, without(2))


def oversized() -> Iterator[Damaged]:
    size = 10_000_000
    rows = [b"x" * size, json.dumps({"prompt": "q", "completion": "a" * size}).encode(), b'{"a":' * (size // 5)]
    yield from lines_with("oversized_line", rows)
    array = json.dumps([{**pair(i), "completion": "a" * size} if i == 1 else pair(i) for i in range(ROWS)])
    yield Damaged("oversized_row", "oversized.json", array.encode(), without(1))
    table = pa.Table.from_pylist([{**pair(i), "completion": "a" * size} if i == 1 else pair(i) for i in range(ROWS)])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    yield Damaged("oversized_row", "oversized.parquet", sink.getvalue(), without(1))


def mixed() -> Iterator[Damaged]:
    other = [
        chat(9),
        {"instruction": "q", "output": "a"},
        {"text": "words"},
        {"conversations": [{"from": "human", "value": "q"}]},
    ]
    yield from lines_with("mixed_formats", dumped(other))
    yield from lines_with("mixed_formats_chat", dumped([pair(9), {"text": "words"}]), chat)


def roles() -> Iterator[Damaged]:
    u, a, s = ("user", "q"), ("assistant", "a"), ("system", "s")
    bad = [
        turns(a, u),
        turns(u, u, a),
        turns(u, a, a),
        turns(u, s, a),
        turns(u),
        turns(u, a, u),
        turns(s),
        turns(s, s, u, a),
    ]
    strange = [turns(("alien", "q"), a), turns(("us er", "q"), a), turns((None, "q"), a), turns(("tool", "q"), a)]
    yield from lines_with("roles_out_of_order", dumped(bad), chat)
    yield from lines_with("unknown_role", dumped(strange), chat)


def not_objects() -> Iterator[Damaged]:
    yield from lines_with(
        "not_an_object", [b"3", b'"text"', b"[1, 2]", b"null", b"NaN", b"true", b'["prompt", "completion"]']
    )


def nesting() -> Iterator[Damaged]:
    deep = 50_000
    yield from lines_with("deep_nesting", [b"[" * deep, b'{"prompt":' * deep, b"[" * deep + b"]" * deep])
    yield Damaged("deep_nesting", "deep.json", b'[{"a":' * deep, ())
    yield Damaged("deep_nesting", "braces.json", b"[" + b"{" * 1_000_000, ())


def special_tokens() -> Iterator[Damaged]:
    bad = [turns(("user", "q<|im_end|>"), ("assistant", "a")), turns(("user", "q"), ("assistant", "<|im_start|>a"))]
    yield from lines_with("special_token", dumped(bad), chat)


def arrays() -> Iterator[Damaged]:
    rows = [json.dumps(pair(i)) for i in range(ROWS)]
    for number, broken in enumerate(
        ['{"prompt": "q", }', '{"prompt": [{"a": 1}, oops], "completion": "a"}', "oops", '{"prompt']
    ):
        values = [*rows[:2], broken, *rows[3:]]
        yield Damaged("broken_array", f"lines{number}.json", ("[\n" + ",\n".join(values) + "\n]").encode(), without(2))
        yield Damaged("broken_array", f"flat{number}.json", ("[" + ", ".join(values) + "]").encode(), without(2))
    indented = json.dumps([pair(i) for i in range(ROWS)], indent=2)
    yield Damaged("broken_array", "comma.json", indented.replace('"answer 3"', '"answer 3",').encode(), without(3))
    yield Damaged("broken_array", "open.json", ("[" + ", ".join(rows)).encode(), ALL)
    yield Damaged("broken_array", "scalars.json", ("[1, " + ", ".join(rows) + ', "x"]').encode(), ALL)


def truncated() -> Iterator[Damaged]:
    lines = jsonl()
    yield Damaged("truncated", "cut.jsonl", b"".join(lines)[:-20], without(5))
    text = json.dumps([pair(i) for i in range(ROWS)]).encode()
    yield Damaged("truncated", "cut.json", text[:-20], without(5))
    quoted = b"\n".join(b'"%s"' % line.replace(b",", b'","') for line in table().splitlines())
    yield Damaged("truncated", "cut.csv", quoted[:-4], without(5))
    many = b"".join(jsonl(lambda i: {"prompt": f"question {i}", "completion": f"answer {i * 7919 % 1000}"}, 200))
    packed = gzip.compress(many)
    for keep in (10, len(packed) // 2, len(packed) - 4):
        text = zlib.decompressobj(wbits=31).decompress(packed[:keep])
        yield Damaged("truncated", f"cut{keep}.jsonl.gz", packed[:keep], tuple(range(text.count(b"\n"))))
    yield Damaged("truncated", "cut.jsonl.bz2", bz2.compress(b"".join(lines))[:-30], ())
    cut = lzma.compress(b"".join(lines))[:-30]
    rows = lzma.LZMADecompressor().decompress(cut).count(b"\n")
    yield Damaged("truncated", "cut.jsonl.xz", cut, tuple(range(rows)))
    for share in (0.3, 0.9):
        data = parquet()
        yield Damaged("truncated", f"cut{share}.parquet", data[: int(share * len(data))], ())
    yield Damaged("truncated", "cut.arrow", stream()[:-40], (0, 1, 2, 3))
    yield Damaged("truncated", "cut_file.arrow", arrow_file()[:-40], ALL)


def table(rows: int = ROWS) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["prompt", "completion"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(pair(i) for i in range(rows))
    return text.getvalue().encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([pair(i) for i in range(ROWS)]), sink, row_group_size=2, compression="none")
    return sink.getvalue()


def _batches() -> list[pa.RecordBatch]:
    return pa.Table.from_pylist([pair(i) for i in range(ROWS)]).to_batches(max_chunksize=2)


def stream() -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, _batches()[0].schema) as writer:
        for batch in _batches():
            writer.write(batch)
    return sink.getvalue()


def arrow_file() -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, _batches()[0].schema) as writer:
        for batch in _batches():
            writer.write(batch)
    return sink.getvalue()


def csv_structure() -> Iterator[Damaged]:
    for number, line in enumerate(
        [
            b'"question 2,answer 2',  # open quote
            b'"question 2","answer 2',  # open quote at the end
            b"question 2",  # a field missing
            b"question 2,answer 2,more",  # a field too many
            b'"question" 2,answer 2',  # text after a quote
            b"question 2,",  # an empty field
            b"question \x00 2,answer 2",  # a zero byte
            b"question 2,caf\xe9",  # not UTF-8
            b'question 2,"a"b"',  # quotes in quotes
        ]
    ):
        lines = table().splitlines(keepends=True)
        lines[3] = line + b"\n"
        yield Damaged("csv_structure", f"csv{number}.csv", b"".join(lines), without(2))
    tabs = table().replace(b",", b"\t").splitlines(keepends=True)
    tabs[3] = b"question 2\n"
    yield Damaged("csv_structure", "csv.tsv", b"".join(tabs), without(2))


def compression() -> Iterator[Damaged]:
    data = b"".join(jsonl())
    packed = gzip.compress(data)
    yield Damaged("damaged_compression", "crc.jsonl.gz", packed[:-8] + b"\0" * 8, ALL)
    yield Damaged("damaged_compression", "plain.jsonl.gz", data, ())
    yield Damaged("damaged_compression", "plain.jsonl.xz", data, ())
    yield Damaged("damaged_compression", "plain.jsonl.bz2", data, ())
    yield Damaged("damaged_compression", "tail.jsonl.gz", packed + b"garbage", ALL)
    bad = bytearray(bz2.compress(data))
    bad[40] ^= 0xFF
    yield Damaged("damaged_compression", "flipped.jsonl.bz2", bytes(bad), ())
    bad = bytearray(lzma.compress(data))
    bad[40] ^= 0xFF
    yield Damaged("damaged_compression", "flipped.jsonl.xz", bytes(bad), ())


def columnar() -> Iterator[Damaged]:
    data = bytearray(parquet())
    at = data.rindex(b"question 2", 0, data.index(b"question 3")) - 4
    data[at : at + 4] = b"\xff" * 4  # the length of the first text of the second row group
    yield Damaged("damaged_columns", "group.parquet", bytes(data), without(2, 3))
    rows: list[dict[str, Any]] = [pair(i) for i in range(ROWS)]
    rows[2]["completion"] = None
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    yield Damaged("damaged_columns", "null.parquet", sink.getvalue(), without(2))
    broken = bytearray(stream())
    last = broken.rindex(b"question 4")
    broken[last - 200 : last - 100] = b"\xff" * 100
    yield Damaged("damaged_columns", "batch.arrow", bytes(broken), (0, 1, 2, 3))


def wrong_kind() -> Iterator[Damaged]:
    data = b"".join(jsonl())
    yield Damaged("wrong_kind", "jsonl.parquet", data, ())
    yield Damaged("wrong_kind", "jsonl.arrow", data, ())
    yield Damaged("wrong_kind", "parquet.jsonl", parquet(), ())
    yield Damaged("wrong_kind", "parquet.json", parquet(), ())
    yield Damaged("wrong_kind", "parquet.csv", parquet(), ())
    yield Damaged("wrong_kind", "page.jsonl", b"<!DOCTYPE html>\n<html><body>404</body></html>\n", ())
    yield Damaged(
        "wrong_kind", "pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", ()
    )


def nothing() -> Iterator[Damaged]:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([pair(0)]).slice(0, 0), sink)
    for name, data in {
        "empty.jsonl": b"",
        "blank.jsonl": b"\n  \n\n",
        "array.json": b"[]",
        "object.json": b"{}",
        "empty.json": b"",
        "empty.csv": b"",
        "header.csv": b"prompt,completion\n",
        "empty.parquet": b"",
        "rows.parquet": sink.getvalue(),
        "empty.arrow": b"",
        "empty.jsonl.gz": b"",
        "nothing.jsonl.gz": gzip.compress(b""),
        "bom.jsonl": b"\xef\xbb\xbf",
    }.items():
        yield Damaged("no_rows", name, data, ())


def corpus() -> list[Damaged]:
    """Every damaged file."""
    makers = (
        invalid_json,
        missing_column,
        wrong_type,
        empty_content,
        surrogates,
        controls,
        encodings,
        oversized,
        mixed,
    )
    more = (roles, not_objects, nesting, special_tokens, arrays, truncated, csv_structure, compression, columnar)
    return [damaged for maker in (*makers, *more, wrong_kind, nothing) for damaged in maker()]


def write(damaged: Damaged, folder: Path) -> Path:
    path = folder / damaged.name
    path.write_bytes(damaged.data)
    return path
