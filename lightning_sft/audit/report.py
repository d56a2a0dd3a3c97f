"""The files of an audit: the page as Markdown and as HTML, everything as JSON, the contexts a line each."""

from __future__ import annotations

from pathlib import Path

from lightning_sft.audit.page import sections
from lightning_sft.audit.render import to_html, to_markdown
from lightning_sft.audit.result import Audit
from lightning_sft.audit.summary import CONTEXTS, title
from lightning_sft.errors import OutputExistsError, UserError
from lightning_sft.files import new_folder, to_json, write_text
from lightning_sft.places import free

DEFAULT = "audit"
PAGE = "audit.html"


def new_place(output: str | None) -> Path:
    """Return the folder to write: the one asked for, or the first of ``audit``, ``audit-2`` ... that is free.

    Raises:
        OutputExistsError: the one asked for exists.
    """
    if output is None:
        return free(Path(DEFAULT))
    if Path(output).exists():
        raise OutputExistsError(output, "Give a folder that does not exist yet.")
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
