"""Files that hold something else than their ending says, and rows with a mistake that many make, say what to do."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lightning_sft.data import Source
from lightning_sft.data.types import BadRow
from lightning_sft.errors import UserError

ROW = {"prompt": "a", "completion": "b"}
LINE = json.dumps(ROW)
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def read(name: str, content: bytes | str) -> list[Any]:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return list(Source(name).examples())


def parquet() -> bytes:
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"]}), "made")
    return Path("made").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "parquet", ("holds Parquet", "a.parquet")),
        ("a.jsonl", "parquet", ("ends in .jsonl", "a.parquet")),
        ("a.csv", "parquet", ("holds Parquet",)),
        ("a.parquet", LINE, ("holds JSON", "a.jsonl")),
        ("a.jsonl", gzip.compress(LINE.encode(), mtime=0), ("gzip", "a.jsonl.gz")),
        ("a.csv", b"PK\x03\x04", ("Excel", "CSV in UTF-8")),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ("Git LFS", "git lfs pull")),
        ("a.json", "<!DOCTYPE html><html></html>", ("a web page", "the file itself")),
    ],
)
def test_a_file_is_not_what_its_ending_says(name: str, content: bytes | str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        read(name, parquet() if content == "parquet" else content)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", '"prompt;completion"\n"a;b"\n', ("in quotes as a whole", "';' separates nothing")),
        (
            "a.jsonl",
            json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}),
            ("preferences", "{completion: chosen}"),
        ),
        ("a.jsonl", json.dumps({"input_ids": [1], "labels": [1]}), ("tokens already", "the text")),
        ("a.jsonl", json.dumps(CHAT), ("one message", "{messages: [...]}")),
        ("a.json", json.dumps({"0": ROW, "1": ROW}), ("as a list",)),
        ("a.jsonl", json.dumps({"mesages": CHAT}), ("'mesages' meant to be 'messages'", "{messages: mesages}")),
        ("a.jsonl", json.dumps({"instuction": "a", "output": "b"}), ("meant to be 'instruction'",)),
    ],
)
def test_columns_that_tell_the_mistake(name: str, content: str, words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as raised:
        read(name, content)
    for word in (*words, "Formats and their columns are"):
        assert word in str(raised.value)
    assert "Map the columns, for example" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (f"{LINE},\n{LINE}\n", "a line ends with a comma"),
        (json.dumps(ROW, indent=1) + "\n", "over several lines: call the file .json"),
        (f"{ROW}\n", "how Python prints a dict"),
        (json.dumps({"messages": json.dumps(CHAT)}) + "\n", "write the list itself, not its text"),
        (json.dumps({"messages": [{"role": "user", "contents": "a"}]}) + "\n", "no content; it has role, contents"),
    ],
)
def test_rows_that_tell_the_mistake(content: str, word: str) -> None:
    bad = read("a.jsonl", content)[0]
    assert isinstance(bad, BadRow)
    assert word in bad.reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", "\ufeff" + LINE),  # as Windows writes it
        ("a.csv", "\ufeffprompt,completion\na,b\n"),
        ("a.jsonl", f"{LINE}\r\n{LINE}\r\n"),
        ("a.json", json.dumps({"data": [ROW]})),
        ("a.jsonl", json.dumps({"conversations": [{"from": "human", "value": "a"}, {"from": "bot", "value": "b"}]})),
        (
            "a.jsonl",
            json.dumps({"messages": [{"role": "User", "content": "a"}, {"role": "Assistant", "content": "b"}]}),
        ),
    ],
)
def test_what_needs_no_mending_is_read(name: str, content: str) -> None:
    roles = [message["role"] for message in read(name, content)[0].messages]
    assert roles == ["user", "assistant"]
