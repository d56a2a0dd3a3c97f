"""Answers beside each other, as a terminal shows them."""

import io
import re

import pytest

from lightning_sft.chat.columns import Below, Beside, layout


class Screen(io.StringIO):
    """A terminal that knows what answers are written with: text, line breaks, and the cursor's way up."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        cells: dict[int, list[str]] = {}
        row = column = 0
        for part in re.findall(r"\x1b\[\d+A|\r|\n|[^\x1b\r\n]", self.getvalue()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
            elif part.startswith("\x1b"):
                row -= int(part[2:-1])
                assert row >= 0, "above what was written"
            else:
                line = cells.setdefault(row, [])
                line += [" "] * (column + 1 - len(line))
                line[column] = part
                column += 1
        return ["".join(cells.get(i, [])).rstrip() for i in range(max(cells) + 1)]


def shown(first: str, second: str, width: int = 43, height: int = 40) -> list[str]:
    screen = Screen()
    place = Beside(screen, ["base", "tuned"], (width, height))
    for index, text in enumerate((first, second)):
        place.begin(index)
        for piece in re.findall(r"\S+\s*|\s+", text):
            place.write(piece)
        place.end()
    return screen.lines()


def test_the_second_answer_stands_beside_the_first() -> None:
    assert shown("one two three four five six", "seven") == [
        "base:                │ tuned:",
        "one two three four   │ seven",
        "five six",
    ]


def test_a_longer_second_answer_goes_on_below() -> None:
    lines = shown("one", "a\n  b\nc")
    assert lines == ["base:                │ tuned:", "one                  │ a", " " * 21 + "│   b", " " * 21 + "│ c"]


def test_long_words_and_wide_characters_are_broken_to_fit() -> None:
    lines = shown("x" * 45, "\u6f22" * 12)
    assert [line.partition("\u2502")[0].rstrip() for line in lines] == ["base:", "x" * 20, "x" * 20, "x" * 5]
    assert [line.partition("\u2502 ")[2] for line in lines[:3]] == ["tuned:", "\u6f22" * 10, "\u6f22" * 2]


def test_what_has_scrolled_away_is_not_overwritten() -> None:
    lines = shown("one two three four " * 10, "seven", height=6)
    assert lines[-1].endswith("│ seven")
    assert sum("one two three four" in line for line in lines) == 10


def test_escapes_of_an_answer_do_not_reach_the_terminal() -> None:
    assert shown("a\x1b[2Jb", "c")[1].startswith("a[2Jb")
    screen, pipe = Screen(), io.StringIO()
    for output in (screen, pipe):
        Below(output, ["tuned"]).write("a\x1b[2J\tb\n")
    assert (screen.getvalue(), pipe.getvalue()) == ("a[2J\tb\n", "a\x1b[2J\tb\n")


def test_without_a_terminal_answers_stand_below_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert isinstance(layout(io.StringIO(), ["base", "tuned"]), Below)
    assert isinstance(layout(Screen(), ["tuned"]), Below)
    assert isinstance(layout(Screen(), ["base", "tuned"]), Beside)
    monkeypatch.setenv("COLUMNS", "50")
    assert isinstance(layout(Screen(), ["base", "tuned"]), Below), "too narrow"
    output = io.StringIO()
    for labels in (["base", "tuned"], ["tuned"]):
        place = layout(output, labels)
        for index in range(len(labels)):
            place.begin(index)
            place.write("yes")
            place.end()
    assert output.getvalue() == "[base]\nyes\n\n[tuned]\nyes\n\nyes\n"
