"""Words and tables of studies' pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_sft.sweep.intervals import Interval
from studies.findings import Finding

NOT_RUN = "not run"


def points(difference: Interval | None, digits: int = 1) -> str:
    """Return a difference of shares with its interval, in percentage points."""
    if difference is None:
        return NOT_RUN
    text = f"{100 * difference.mean:+.{digits}f}"
    if difference.low is None or difference.high is None:
        return text
    return f"{text} [{100 * difference.low:+.{digits}f}, {100 * difference.high:+.{digits}f}]"


def p_text(p: float | None) -> str:
    """Return the p of a test for a table; "-" where nothing was tested."""
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def cell_text(one: Finding) -> str:
    """Return a finding for a table; of an incomplete one, how much of it has run."""
    if one.complete:
        return points(one.difference)
    return NOT_RUN if not one.values else f"{len(one.values)} of {one.expected} run"


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pictures(files: Sequence[Path], page: Path, alternative: str) -> str:
    """Return the links to a figure's files, one for each theme; "" without any.

    Args:
        files: named by their theme.
        page: that shows them.
        alternative: the figure in words.
    """
    top = page.parent.parent
    return "\n".join(f"![{alternative}]({Path('..') / file.relative_to(top)}#only-{file.stem})" for file in files)
