"""What separates the fields of a table is told by its header; a table with commas is never read in another way."""

import csv
from pathlib import Path

import pytest

from lightning_sft.data.reading import tabular
from lightning_sft.data.reading.readers import read_file
from lightning_sft.data.types import BadRow, Record

#: texts that are full of what might separate
HARD = [
    {"prompt": "a; b; c;", "completion": "1|2|3"},
    {"prompt": 'he said "so; be it"', "completion": "x,y\n;z"},
    {"prompt": "tab\there", "completion": ";;;"},
]


def rows(name: str) -> list[dict[str, object]]:
    found = list(read_file(Path(name), lambda row: True, 1 << 20))
    assert all(isinstance(row, Record) for row in found), found
    return [row.row for row in found if isinstance(row, Record)]


def write(name: str, delimiter: str, quoting: int) -> None:
    with open(name, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(HARD[0]), delimiter=delimiter, quoting=quoting, lineterminator="\n")
        writer.writeheader()
        writer.writerows(HARD)


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
@pytest.mark.parametrize(
    ("name", "delimiter", "said"),
    [
        ("a.csv", ",", ""),
        ("a.csv", ";", "semicolons"),
        ("a.csv", "\t", "tabs"),
        ("a.csv", "|", "vertical bars"),
        ("a.tsv", "\t", ""),
        ("a.tsv", ";", "semicolons"),
    ],
)
def test_hard_texts_come_back(
    name: str, delimiter: str, said: str, quoting: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tabular._say.cache_clear()
    write(name, delimiter, quoting)
    assert rows(name) == HARD
    assert rows(name) == HARD
    line = f"note: {name}: its fields are separated by {said}, as its header tells.\n"
    assert capsys.readouterr().err == (line if said else "")  # once


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text\na; b|c\n", [{"text": "a; b|c"}]),
        ('"text; raw"\na\n', [{"text; raw": "a"}]),
        ("text;\na;\n", [{"text;": "a;"}]),  # one name: nothing says that it separates
        ("a;b,c;d\n1;2,3;4\n", [{"a;b": "1;2", "c;d": "3;4"}]),
        ("prompt;completion;\na;b;\n", [{"prompt": "a", "completion": "b", "": ""}]),
        ("\ufeffprompt|note;2|completion\na|b|c\n",
         [{"prompt": "a", "note;2": "b", "completion": "c"}]),
    ],
)  # fmt: skip
def test_headers_that_might_mean_two_things(content: str, expected: list[dict[str, object]]) -> None:
    Path("a.csv").write_text(content, encoding="utf-8")
    assert rows("a.csv") == expected


def test_a_row_of_another_length_is_told_what_separates() -> None:
    Path("a.csv").write_text("prompt;completion\na,b\n")
    bad = next(read_file(Path("a.csv"), lambda row: True, 1 << 20))
    assert isinstance(bad, BadRow)
    assert bad.reason == "invalid CSV: the row has 1 fields, the header 2 (separated by semicolons)"
