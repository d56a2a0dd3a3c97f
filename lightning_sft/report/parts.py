"""What a page is made of: sections, what each run says in one, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_sft.report.charts import Chart


@dataclass
class Table:
    """Rows of text under a head; ``wide`` tables become lists of cards on a phone."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    wide: bool = False


@dataclass
class Part:
    """What one run, or all of them together, have to say in a section.

    Attributes:
        run: its name; empty for all.
        lines: paragraphs.
        charts: drawn side by side where there is room.
        tables: below them.
        command: what to type next; empty without.
        why: what it is for, a line above it.
    """

    run: str = ""
    lines: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    command: str = ""
    why: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.lines or self.charts or self.tables)


@dataclass
class Section:
    """A heading, what it is about, and its parts."""

    title: str
    about: str
    parts: list[Part]
