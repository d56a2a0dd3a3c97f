"""A page of ours, which is Markdown, as people read it in a terminal: no marks, columns that stand below each other."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

from lightning_sft.report.tables import rows_of

_UNDERLINES = {1: "=", 2: "-"}
#: characters of the narrowest and the widest page
_NARROW, _WIDE = 80, 140


def shown(markdown: str) -> str:
    """Return a page as it is printed: in plain words on a terminal, and as it is where it goes into a file."""
    if not sys.stdout.isatty():
        return markdown
    return in_plain_text(markdown, max(_NARROW, min(shutil.get_terminal_size((120, 40)).columns, _WIDE)))


def in_plain_text(markdown: str, width: int) -> str:
    """Return a page without the marks of Markdown, its lines no longer than a terminal is wide.

    Commands and whatever else stands between fences is indented and stays as it is; a table that is too wide is turned.

    Args:
        markdown: the page: headings, paragraphs, lists of one level, tables, fences.
        width: of the terminal, in characters.
    """
    return "\n".join(_lines(markdown.splitlines(), width))


def _lines(lines: Sequence[str], width: int) -> Iterator[str]:
    left = list(lines)
    while left:
        line = left.pop(0)
        if fence := re.match(r"(`{3,})", line):
            while left and not left[0].startswith(fence[1]):
                yield f"  {left.pop(0)}".rstrip()
            del left[:1]
        elif line.startswith("|"):
            table = [line]
            while left and left[0].startswith("|"):
                table.append(left.pop(0))
            yield from _table(rows_of("\n".join(table)), width)
        elif heading := re.match(r"(#+) (.*)", line):
            yield heading[2]
            yield _UNDERLINES.get(len(heading[1]), "-") * len(heading[2])
        else:
            text = line.replace("**", "")
            indent = "  " if text.startswith("- ") else ""
            yield from textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False,
                                     break_on_hyphens=False) or [""]  # fmt: skip


def _table(rows: list[list[str]], width: int) -> Iterator[str]:
    """Yield the lines of a table; one that is too wide has its columns as rows, if that makes it narrower."""
    rows = [row for row in rows if any(row)]
    size = max(map(len, rows), default=0)
    rows = [[*row, *[""] * (size - len(row))] for row in rows]
    turned = [list(column) for column in zip(*rows, strict=True)]
    if sum(_widths(rows)) > width and sum(_widths(turned)) < sum(_widths(rows)):
        rows = turned
    widths = _widths(rows)
    for row in rows:
        yield "".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip()


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the characters that each column takes, with two between it and the next."""
    return [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
