"""The files of an audit: the page as Markdown and as HTML, everything as JSON, the contexts a line each."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from lightning_sft.audit.page import sections
from lightning_sft.audit.render import to_html, to_markdown
from lightning_sft.audit.result import Audit
from lightning_sft.audit.summary import CONTEXTS, title
from lightning_sft.errors import UserError
from lightning_sft.files import new_folder, to_json, write_text

DEFAULT = "audit"
PAGE = "audit.html"


def new_place(output: str | None) -> Path:
    """Return the folder to write: the one asked for, or the first of ``audit``, ``audit-2`` ... that is free.

    Raises:
        UserError: the one asked for exists.
    """
    if output is None:
        names = (DEFAULT if i == 1 else f"{DEFAULT}-{i}" for i in count(1))
        return next(path for name in names if not (path := Path(name)).exists())
    if Path(output).exists():
        raise UserError(
            f"--output is {output!r}, which exists. Nothing is overwritten: give a folder that does not exist yet."
        )
    return Path(output)


def write_report(audit: Audit, folder: Path) -> None:
    """Write ``audit.md``, ``audit.html``, ``audit.json`` and ``contexts.jsonl``: all of them, or nothing.

    Raises:
        UserError: the folder cannot be written.
    """
    page = sections(audit, folder)
    lines = "".join(to_json(context.line()) + "\n" for context in audit.contexts)
    try:
        with new_folder(folder) as partial:
            write_text(partial / "audit.md", to_markdown(title(audit), page))
            write_text(partial / PAGE, to_html(title(audit), page))
            write_text(partial / "audit.json", to_json(audit.as_dict(), indent=2) + "\n")
            write_text(partial / CONTEXTS, lines)
    except OSError as error:
        raise UserError(f"The folder {str(folder)!r} could not be written: {error}. Give another --output.") from error
