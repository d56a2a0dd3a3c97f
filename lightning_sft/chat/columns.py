"""Answers beside each other in a terminal, written as they come; one below the other where there is none."""

from __future__ import annotations

import shutil
import unicodedata
from typing import TextIO

#: a column narrower than this cannot be read
NARROWEST = 30
_BETWEEN = " \u2502 "


class Below:
    """Answers one below the other, each under its label.

    Args:
        output: where they go.
        labels: of the speakers; without one, nothing but the text is written.
    """

    def __init__(self, output: TextIO, labels: list[str]) -> None:
        self._output = output
        self._labels = labels if len(labels) > 1 else []

    def begin(self, index: int) -> None:
        """Begin the answer of a speaker."""
        if self._labels:
            self._output.write(f"[{self._labels[index]}]\n")

    def write(self, text: str) -> None:
        """Write a piece of the answer; what steers a terminal does not reach one."""
        if self._output.isatty():
            text = "".join(char for char in text if char.isprintable() or char in "\n\t")
        self._output.write(text)
        self._output.flush()

    def end(self) -> None:
        """End the answer."""
        self._output.write("\n\n" if self._labels else "\n")
        self._output.flush()


class Beside:
    """Two answers beside each other in a terminal. The second is written into the lines of the first, from the top.

    An answer that is longer than the screen has scrolled away from it: the other then begins below.

    Args:
        output: a terminal.
        labels: of both speakers.
        size: columns and lines of the terminal.
    """

    def __init__(self, output: TextIO, labels: list[str], size: tuple[int, int]) -> None:
        self._output = output
        self._labels = labels
        self._width = (size[0] - len(_BETWEEN)) // 2
        self._height = size[1]
        self._left: list[str] = []

    def begin(self, index: int) -> None:
        """Begin the answer of a speaker: the first on the left, the second on the right."""
        self._on_right = index == 1
        if self._on_right:
            if len(self._left) + 1 < self._height:
                self._output.write(f"\x1b[{len(self._left)}A\r")
            else:
                self._left = []
        self._lines = [""]
        self._word = ""
        self._wrapped = False
        self._margin()
        for char in f"{self._labels[index]}:\n":
            self._add(char)

    def write(self, text: str) -> None:
        """Write a piece of the answer."""
        for char in text:
            self._add(char)
        self._output.flush()

    def end(self) -> None:
        """End the answer, and leave the cursor below both."""
        self._flush_word()
        self._output.write("\n")
        if self._on_right:
            for left in self._left[len(self._lines) :]:
                self._output.write(f"\r{left}\n")
            self._output.write("\n")
        else:
            self._left = self._lines
        self._output.flush()

    def _add(self, char: str) -> None:
        if char == "\n":
            self._flush_word()
            self._new_line()
        elif char.isspace():
            self._flush_word()
            room = _width(self._lines[-1]) < self._width
            if room and (self._lines[-1] or not self._wrapped):  # indentation stays, the space of a broken line goes
                self._put(" ")
        elif char.isprintable():
            if _width(self._word + char) > self._width:  # a word that no line holds
                self._flush_word()
            self._word += char

    def _flush_word(self) -> None:
        if self._word and _width(self._lines[-1] + self._word) > self._width:
            self._new_line(wrapped=True)
        self._put(self._word)
        self._word = ""

    def _put(self, text: str) -> None:
        self._lines[-1] += text
        self._output.write(text)

    def _new_line(self, *, wrapped: bool = False) -> None:
        self._wrapped = wrapped
        self._output.write("\n")
        self._lines.append("")
        self._margin()

    def _margin(self) -> None:
        """Write what stands left of a line of the right column."""
        if self._on_right:
            at = len(self._lines) - 1
            left = self._left[at] if at < len(self._left) else ""
            self._output.write(f"\r{left}{' ' * (self._width - _width(left))}{_BETWEEN}")


def layout(output: TextIO, labels: list[str]) -> Below | Beside:
    """Return how answers are laid out: beside each other where two speak in a terminal that is wide enough."""
    size = shutil.get_terminal_size()
    if len(labels) == 2 and output.isatty() and (size.columns - len(_BETWEEN)) // 2 >= NARROWEST:
        return Beside(output, labels, (size.columns, size.lines))
    return Below(output, labels)


def _width(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)
