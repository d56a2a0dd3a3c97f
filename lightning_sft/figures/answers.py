"""Generated answers as a table that loggers show."""

from __future__ import annotations

from collections.abc import Sequence


def answer_table(shown: Sequence[tuple[str, str | None, str, float | None]]) -> str:
    """Return a Markdown table of prompts, references, answers and scores."""
    lines = ["| prompt | reference | answer | score |", "| --- | --- | --- | --- |"]
    for prompt, reference, answer, score in shown:
        cells = (prompt, reference or "", answer, "" if score is None else f"{score:.2f}")
        lines.append("| " + " | ".join(_cell(c) for c in cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
