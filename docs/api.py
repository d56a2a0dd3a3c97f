"""Writes the lists of reference/api.md from the code: run it after adding a directive or changing a first sentence.

The built site shows the docstrings in place of the directives (``::: name``). Elsewhere, as on a code host, a directive
is a bare name; so every section also lists what its names are, and where they are defined.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "api.md"
DIRECTIVE = re.compile(r"^::: ([\w.]+)$", re.M)


def find(path: str) -> Any:
    """Return what a directive names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def row(path: str) -> str:
    """Return a name's row: the name, the first sentence of its docstring, the file."""
    found = find(path)
    sentence = re.split(r"(?<=\.)\s", " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split()))[0]
    file = Path(import_module(found.__module__).__file__ or "").resolve().relative_to(ROOT).as_posix()
    plain = re.sub(r"`+([^`]+)`+", r"`\1`", sentence).replace("|", "\\|")
    return f"| `{path.rpartition('.')[2]}` | {plain} | [{file}](../../{file}) |"


def section(text: str) -> str:
    """Return a section with its table right below its heading, in place of the one that it had."""
    heading, _, rest = text.partition("\n")
    rest = re.sub(r"^\|.*\n", "", rest, flags=re.M).strip("\n")
    rows = [row(path) for path in DIRECTIVE.findall(rest)]
    return "\n".join([heading, "", "| name | what it is | file |", "|---|---|---|", *rows, "", rest, ""])


def page() -> str:
    """Return the page as it should be."""
    head, *sections = re.split(r"^(?=## )", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return head + "\n".join(section(text) for text in sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
