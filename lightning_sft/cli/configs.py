"""``lightning configs``: list, show and copy the configurations that are shipped."""

from __future__ import annotations

import argparse
import difflib
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_sft.cli.usage import VerbParser
from lightning_sft.errors import UserError
from lightning_sft.files import replacing
from lightning_sft.places import shipped_folder

_ABOUT = """\
  lightning configs                     all of them, with what each is for
  lightning configs strategy            those of one folder
  lightning configs show demo           the text of one
  lightning configs copy strategy/ddp   a copy below configs/ of the current folder
  lightning configs copy                copies of all
"""
_FILE = re.compile(r"configs/[\w/.-]+\.jsonl")


def names() -> dict[str, Path]:
    """Return the file of each shipped configuration by its name, such as ``strategy/ddp``: whole ones come first."""
    root = shipped_folder()
    files = sorted(root.rglob("*.yaml"), key=lambda path: (len(path.relative_to(root).parts), path))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def find(name: str) -> str:
    """Return the name of the configuration that somebody means.

    Args:
        name: as listed, with or without ``configs/`` before it and ``.yaml`` behind; or its last part, if one alone
            has it.

    Raises:
        UserError: there is none, or more than one.
    """
    known = list(names())
    plain = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    if plain in known:
        return plain
    ends = [other for other in known if other.rpartition("/")[2] == plain]
    if len(ends) == 1:
        return ends[0]
    close = ends or difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise UserError(f"There is no shipped configuration {name!r}.{hint} `lightning configs` lists all of them.")


def title(path: Path) -> str:
    """Return what a configuration is for: the first sentence of its comment, without commands and warnings."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    for paragraph in "\n".join(line.removeprefix("#").strip() for line in comment).split("\n\n"):
        if paragraph.startswith("NOT RUN HERE"):
            continue
        lines = itertools.dropwhile(_is_command, paragraph.splitlines())
        sentence = re.split(r"(?<=[\w)%])\.(?: |$)|: (?=--)", " ".join(itertools.takewhile(_is_text, lines)))[0]
        if sentence:
            return sentence.rstrip(".:")
    return ""


def _is_command(line: str) -> bool:
    return line.startswith(("lightning ", "--"))


def _is_text(line: str) -> bool:
    return not _is_command(line)


def describe(chosen: Iterable[str]) -> str:
    """Return a line for each configuration: its name and what it is for; wrapped where a terminal is narrower."""
    files = names()
    chosen = list(chosen)
    width = max(map(len, chosen)) + 2
    lines = [f"{name:<{width}}{title(files[name])}" for name in chosen]
    if not sys.stdout.isatty():  # a line each, for other programs
        return "\n".join(lines)
    columns = max(shutil.get_terminal_size().columns, width + 40)
    return "\n".join(textwrap.fill(line, columns, subsequent_indent=" " * width) for line in lines)


def copy(chosen: Iterable[str], folder: Path) -> list[Path]:
    """Copy configurations with the rows that they name below ``folder``; return what was written.

    Args:
        chosen: names.
        folder: gets ``configs/`` with the same folders below it, so that paths in commands and files stay right.

    Raises:
        UserError: a file of that name is there, with another content; nothing is written then.
    """
    root, files = shipped_folder(), names()
    sources: dict[Path, None] = {}
    for name in chosen:
        sources[files[name]] = None
        named = _FILE.findall(files[name].read_text(encoding="utf-8"))
        sources |= {root.parent / file: None for file in named if (root.parent / file).is_file()}
    pairs = {source: folder / "configs" / source.relative_to(root) for source in sources}
    changed = [str(to) for source, to in pairs.items() if to.exists() and not _same(source, to)]
    if changed:
        raise UserError(
            f"{', '.join(changed)} {'is' if len(changed) == 1 else 'are'} there already, with another content, and "
            "nothing was copied. Give another folder by --to, or move what is there."
        )
    for source, to in pairs.items():
        with replacing(to) as partial:
            shutil.copyfile(source, partial)
    return list(pairs.values())


def _same(source: Path, to: Path) -> bool:
    return to.is_file() and to.read_bytes() == source.read_bytes()


def parser() -> VerbParser:
    """Return the parser of the verb."""
    made = VerbParser("configs", "[FOLDER | show NAME | copy [NAME ...] [--to FOLDER]]", _ABOUT)
    made.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    made.add_argument(
        "--to",
        type=Path,
        default=Path(),
        help="of copy: the folder in which configs/ is made. Default: the current folder",
    )
    return made


def main(argv: Sequence[str]) -> None:
    """List, show or copy: ``lightning configs``.

    Args:
        argv: the arguments after the verb.
    """
    given = parser().parse_args(argv)
    what, *rest = given.words or ["list"]
    if what == "show":
        if len(rest) != 1:
            raise UserError("Which one? Give one name: lightning configs show demo.")
        print(names()[find(rest[0])].read_text(encoding="utf-8"), end="")
    elif what == "copy":
        written = copy([find(name) for name in rest] or names(), given.to)
        print("\n".join(map(str, written)))
    else:
        folders = ([] if what == "list" else [what]) + rest
        print(describe(_below(folders) if folders else names()))


def _below(folders: list[str]) -> list[str]:
    """Return the names below some folders.

    Raises:
        UserError: there is no such folder.
    """
    known = list(dict.fromkeys(name.rpartition("/")[0] for name in names() if "/" in name))
    for folder in folders:
        if folder.removeprefix("configs/").strip("/") not in known:
            raise UserError(
                f"`lightning configs` has no folder {folder!r}. Allowed: {', '.join(known)}; or show NAME, copy NAME."
            )
    wanted = {folder.removeprefix("configs/").strip("/") for folder in folders}
    return [name for name in names() if name.rpartition("/")[0] in wanted]
