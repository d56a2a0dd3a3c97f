"""What is registered before confirmatory runs: a file in a commit, from whose hash their seeds follow."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_sft.errors import UserError
from lightning_sft.files import file_digest, write_text

FILE = "preregistration.json"
FORMAT = "lightning_sft.preregistration.v1"


@dataclass(frozen=True)
class Registration:
    """What was registered, and by which commit.

    Attributes:
        commit: hash of the commit that brought the file.
        content: of the file.
    """

    commit: str
    content: dict[str, Any]

    def changed(self, root: Path) -> list[str]:
        """Return the registered scripts that are no longer what they were, by path from ``root``."""
        scripts: dict[str, str] = self.content["scripts"]
        return [name for name, digest in scripts.items() if script_digests(root, [name]).get(name) != digest]


def seed_text(study: str, commit: str) -> str:
    """Return the text that all seeds of confirmatory runs follow from.

    >>> seed_text("continuum", "0a1b2c")
    'continuum 0a1b2c'
    """
    return f"{study} {commit}"


def script_digests(root: Path, scripts: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 digest of each script that exists, by path from ``root``."""
    return {name: file_digest(root / name) for name in scripts if (root / name).is_file()}


def write_registration(path: Path, content: Mapping[str, Any], root: Path, scripts: Sequence[str]) -> None:
    """Write the preregistering file; the commit that adds it must hold nothing that changes a run afterwards.

    Args:
        path: of the file.
        content: hypotheses, primary outcome, decision rule, design.
        root: of the checkout.
        scripts: paths from ``root`` of the code that turns cells into numbers, and that draws rows.

    Raises:
        UserError: it exists: what is registered is never rewritten.
    """
    if path.exists():
        raise UserError(f"{path} exists. What is registered is never rewritten; another study has another name.")
    full = {"format": FORMAT, **content, "scripts": script_digests(root, scripts)}
    write_text(path, json.dumps(full, indent=1, ensure_ascii=False) + "\n")


def git(root: Path, *arguments: str) -> str | None:
    """Return what git says in a checkout; None where git or the history is absent, or it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def has_history(root: Path) -> bool:
    """Return whether ``root`` is the top of a git checkout whose whole history is there."""
    top = git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return False  # an unpacked source archive, perhaps inside somebody's own repository
    return git(root, "rev-parse", "--is-shallow-repository") == "false"


def head(root: Path) -> str | None:
    """Return the hash of the commit that is checked out; None without history."""
    return git(root, "rev-parse", "HEAD") if has_history(root) else None


def registered(path: Path, root: Path) -> Registration | None:
    """Return what is registered, with the commit that brought it; None where there is no such file yet.

    Raises:
        UserError: the file is not committed, was changed after the commit that brought it, or the history that would
            show this is not there.
    """
    if not path.exists():
        return None
    if not has_history(root):
        raise UserError(
            f"{path} is there, and the history that says which commit brought it is not: {root} is no full git "
            "checkout. Clone the repository (without --depth) to run what is registered."
        )
    name = path.resolve().relative_to(root.resolve()).as_posix()
    commits = (git(root, "log", "--format=%H", "--", name) or "").split()
    if not commits:
        raise UserError(f"{name} is not committed. Commit it alone, then run again: seeds follow from that commit.")
    committed = git(root, "show", f"{commits[-1]}:{name}")
    if len(commits) > 1 or committed != path.read_text(encoding="utf-8").strip():
        raise UserError(
            f"{name} was changed after the commit {commits[-1]} that brought it. What is registered stays as it was: "
            f"git checkout {commits[-1]} -- {name}"
        )
    return Registration(commits[0], json.loads(path.read_text(encoding="utf-8")))


def history_faults(path: Path, root: Path, pilot: Sequence[Path], confirmatory: Sequence[Path]) -> list[str]:
    """Return what in the order of commits is wrong: pilot, then what is registered, then confirmatory cells.

    Files that are not committed yet are passed over.

    Args:
        path: the preregistering file.
        root: of the checkout.
        pilot: files of pilot cells.
        confirmatory: files of confirmatory cells.
    """
    registration = registered(path, root)
    if registration is None:
        return [f"there are {len(confirmatory)} confirmatory cells, and nothing is registered"] if confirmatory else []
    added = _added(root)
    before = set((git(root, "rev-list", registration.commit) or "").split()) - {registration.commit}
    after = set((git(root, "rev-list", "--ancestry-path", f"{registration.commit}..HEAD") or "").split())
    faults = []
    for files, allowed, word in ((pilot, before, "before"), (confirmatory, after, "after")):
        names = [file.resolve().relative_to(root.resolve()).as_posix() for file in files]
        wrong = [name for name in names if name in added and added[name] not in allowed]
        faults += [f"{name} was not committed {word} {registration.commit}" for name in wrong]
    return faults


def _added(root: Path) -> dict[str, str]:
    """Return by which commit each file came first, by its path from ``root``."""
    found: dict[str, str] = {}
    commit = ""
    told = git(root, "log", "--reverse", "--diff-filter=A", "--name-only", "--no-renames", "--format=commit %H") or ""
    for line in told.splitlines():
        if line.startswith("commit "):
            commit = line.removeprefix("commit ")
        elif line:
            found.setdefault(line, commit)
    return found
