"""Markdown tables that callbacks logged, as rows of cells, and long texts made short."""

from __future__ import annotations

import re
from collections.abc import Sequence


def rows_of(text: str) -> list[list[str]]:
    """Return the rows of the first Markdown table of a text, its head first, with what was escaped undone."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    rows = [_cells(line) for line in lines]
    return [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]


def _cells(line: str) -> list[str]:
    """Return the cells of a line; a backslash before a bar or another backslash stands for that sign."""
    cells, cell, signs = [], "", iter(line.removeprefix("|"))
    for sign in signs:
        if sign == "\\":
            cell += next(signs, "")
        elif sign == "|":
            cells.append(cell)
            cell = ""
        else:
            cell += sign
    return [_plain(cell) for cell in ([*cells, cell] if cell.strip() else cells)]


def _plain(cell: str) -> str:
    return cell.strip().replace("<br>", "\n").replace("&lt;", "<")


#: shared beginnings and ends of fewer signs stay
_LEAST = 12


def without_what_all_share(texts: Sequence[str], *, ends: bool = True) -> list[str]:
    """Return texts without the beginning, and the end, that all of them have, such as a chat template's."""
    if len(set(texts)) < 2:
        return list(texts)
    start = _whole_words(_beginning(texts))
    left = [text[len(start) :] for text in texts]
    end = _whole_words(_beginning([text[::-1] for text in left])) if ends else ""
    cut = [text[: len(text) - len(end)] for text in left]
    return [("..." if start else "") + text.strip() + ("..." if end else "") for text in cut]


def _beginning(texts: Sequence[str]) -> str:
    """Return what all texts begin with."""
    low, high = min(texts), max(texts)
    same = (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b)
    return low[: next(same, len(low))]


def _whole_words(shared: str) -> str:
    """Return the part of a shared beginning up to its last white space; nothing if it is short."""
    whole = re.match(r"(?s).*\s", shared)
    return whole[0] if whole and len(whole[0]) >= _LEAST else ""


#: what chat templates write between messages: a sign for a turn, and whose it is
_TURN = re.compile(
    r"\s*(?:<\|[^<>|\n]{1,40}\|>|</?s>|<(?:start|end)_of_turn>|<bos>|<eos>|\[/?INST\])"
    r"(?:(?<=[>\]])(?:system|user|assistant|model|tool)(?=\s|<|$))?\s*"
)


def spoken(text: str) -> str:
    """Return a text in which what a chat template writes between messages is a bar."""
    return re.sub(r"(?: / )+", " / ", _TURN.sub(" / ", text)).removeprefix(" / ")


def before_a_word(text: str, most: int = 100) -> str:
    """Return the end of what stands before a word, from the beginning of a word on, on one line."""
    line = one_line(spoken(text), len(text) + 100)
    if len(line) <= most:
        return line
    end = line[-most:]
    return f"...{end[end.index(' ') :] if ' ' in end[:-1] else end}"


def one_line(text: str, most: int = 600) -> str:
    """Return a text on one line, its line ends as signs; of a long one, the end."""
    text = re.sub(r"\n(?:\s*\n)+", "\n", text.strip("\n") if text.strip() else text)
    line = text.replace("\n", " \u21b5 ")
    return line if len(line) <= most else f"...{line[-most:]}"


def word(token: str) -> str:
    """Return a token with the spaces at its ends, and its line ends, as signs."""
    start, end = len(token) - len(token.lstrip(" ")), len(token) - len(token.rstrip(" "))
    inner = token[start : len(token) - end] if token.strip(" ") else ""
    return "\u2423" * start + inner.replace("\n", "\u21b5") + "\u2423" * (end if token.strip(" ") else 0)
