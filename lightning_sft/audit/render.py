"""A page of sections as Markdown and as HTML that needs nothing else."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

_STYLE = (
    "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:16px/1.5 system-ui,sans-serif;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}"
    "td,th{border:1px solid #ccc;padding:.25rem .6rem;text-align:left;vertical-align:top}"
    "th{background:#f3f3f3}code,pre{background:#f6f6f6}pre{padding:.6rem;overflow-x:auto}"
    "code{white-space:pre-wrap}"
)


@dataclass(frozen=True)
class Table:
    """Cells are text; text between backticks is a token or a name, shown as it is."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Listing:
    """One bullet an entry."""

    items: Sequence[str]


@dataclass(frozen=True)
class Command:
    """What to type."""

    text: str


Block = str | Table | Listing | Command


@dataclass
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def to_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the page as Markdown."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [_markdown(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return block
    if isinstance(block, Listing):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Command):
        return f"```sh\n{block.text}\n```"
    lines = [block.head, ["---"] * len(block.head), *block.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Return the page as one HTML file."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        parts += [_html(block) for block in section.blocks]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{_inline(block)}</p>"
    if isinstance(block, Listing):
        return "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Command):
        return f"<pre>{html.escape(block.text)}</pre>"
    head = "<tr>" + "".join(f"<th>{_inline(cell)}</th>" for cell in block.head) + "</tr>"
    rows = ("<tr>" + "".join(f"<td>{_inline(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
    return "<table>" + head + "".join(rows) + "</table>"


def _inline(text: str) -> str:
    """Return text with what stands between backticks, and outside of them between two stars, marked."""
    # text, fence, code, text, fence, code, ..., text
    parts = re.split(r"(`+)((?:(?!\1).)+)\1", html.escape(text, quote=False))
    plain = [re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part) for part in parts[::3]]
    plain = [part.replace("-&gt;", "&rarr;") for part in plain]  # of two signs a line may end between them
    codes = [f"<code>{re.sub('^ (.*) $', lambda m: m[1], part)}</code>" for part in parts[2::3]]
    return "".join(piece for pair in zip(plain, [*codes, ""], strict=True) for piece in pair)


def as_token(text: str) -> str:
    """Return a token between backticks, with the spaces at its ends as visible signs."""
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" "))
    end = len(text) - start - len(inner)
    return as_code("\u2423" * start + inner + "\u2423" * end)


def as_code(text: str) -> str:
    """Return any text between backticks, on one line: what cannot be seen as a sign, white space at its ends kept."""
    signs = {"\n": "\u23ce", "\t": "\u21e5"}
    line = "".join(signs.get(c, c) if c in signs or c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    padded = f" {line} " if longest or line[:1] == " " or line[-1:] == " " or not line else line
    return f"{fence}{padded}{fence}"
