"""Cells: what single runs have given, a sealed JSON each; tables and figures are made from them alone."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_sft.compare.result import RunResult
from lightning_sft.errors import UserError
from lightning_sft.files import finite, write_text

FORMAT = "lightning_sft.study.v1"
#: facts that must be the same for all cells of one table
VERSION = ("package version", "package code")


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        study: name of the study.
        stage: part of the study, such as ``pilot``; a table holds cells of one stage.
        block: what its arms share: task, level and noise, as one word.
        kind: ``level`` (it made a checkpoint), ``search`` (it helped to find a rate) or ``judged``.
        replicate: which one of its kind, from 0.
        arm: name of its arm.
        rate: peak learning rate.
        seed: of everything random in it, and of its rows.
        registered: hash of the commit that its seed follows from; None for runs that need none.
        commit: of the checkout that it ran in; None where there was no git.
        settings: its whole configuration, without folders of this machine.
        facts: package version and code, libraries, model, data, device, dtype.
        processor: that it ran on.
        result: a `RunResult` as plain data: every reading, seconds, tokens.
    """

    study: str
    stage: str
    block: str
    kind: str
    replicate: int
    arm: str
    rate: float
    seed: int
    registered: str | None
    commit: str | None
    settings: dict[str, Any]
    facts: dict[str, str]
    processor: str
    result: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, str, int, str, float]:
        """What a study has one cell of."""
        return (self.stage, self.block, self.kind, self.replicate, self.arm, self.rate)

    @property
    def run(self) -> RunResult:
        """What the run has given."""
        return RunResult.of(self.result)

    @property
    def version(self) -> str:
        """Version and code of the package that ran it."""
        return ", ".join(f"{name} {self.facts.get(name, 'unknown')}" for name in VERSION)

    @property
    def file(self) -> str:
        """Its path below the folder of cells."""
        words = [self.block, self.arm, f"{self.kind}{self.replicate}", f"{self.rate:.3g}"]
        return f"{self.stage}/{'_'.join(re.sub(r'[^A-Za-z0-9.]+', '-', word).strip('-') for word in words)}.json"


def seal(content: Mapping[str, Any]) -> str:
    """Return the digest that a cell carries: of all that stands in its file but the digest itself."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    text = json.dumps(finite(rest), sort_keys=True, allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_cell(folder: Path, cell: Cell) -> Path:
    """Write a cell with its digest; returns its file.

    Raises:
        UserError: another cell has its place.
    """
    content = finite({"format": FORMAT, **asdict(cell)})
    path = folder / cell.file
    if path.exists():
        raise UserError(f"{path} exists. A cell is never replaced: remove it first if its run is to be done again.")
    write_text(path, json.dumps({**content, "digest": seal(content)}, indent=1, allow_nan=False) + "\n")
    return path


def read_cells(folder: Path) -> list[Cell]:
    """Return all cells below a folder, in the order of their files.

    Raises:
        UserError: a file that is no cell, was edited, or tells of the same run as another; which one, and what to do.
    """
    found: dict[tuple[Any, ...], Path] = {}
    cells = []
    for path in sorted(folder.rglob("*.json")):
        if path.parent == folder:
            continue  # what is registered stands beside the stages
        cell = _read(path)
        if cell.key in found:
            raise UserError(f"{path} and {found[cell.key]} are cells of one run. Remove one of them.")
        found[cell.key] = path
        cells.append(cell)
    return cells


def _read(path: Path) -> Cell:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        form, digest = content.pop("format"), content.pop("digest")
        if form != FORMAT:
            raise UserError(f"{path} has the format {form!r}; this version reads {FORMAT!r}.")
        if seal({"format": form, **content}) != digest:
            raise UserError(
                f"{path} was edited: its digest does not fit what stands in it. Restore it (git checkout), or remove "
                "it, and its run is done again."
            )
        cell = Cell(**content)
        cell.run  # noqa: B018  it must be readable as a result, too
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no cell of a study: {error}. Remove it, and its run is done again.") from error
    return cell


def require_one_version(cells: Iterable[Cell], here: Mapping[str, str] | None = None) -> None:
    """Raise if cells of one stage were run by different versions of the package, or by another than the one here.

    Cells that tell of a checkpoint stand each for itself: no table puts two of them together.

    Args:
        cells: of any stages; each stage stands for itself.
        here: facts of this process, where new cells are to stand beside them.

    Raises:
        UserError: names the stage, the versions, how many cells each has, and one file of each.
    """
    by_stage: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.kind != "level":
            by_stage.setdefault(cell.stage, []).append(cell)
    for stage, group in by_stage.items():
        versions = Counter(cell.version for cell in group)
        examples = {cell.version: cell.file for cell in reversed(group)}
        told = "; ".join(f"{count} by {version} (as {examples[version]})" for version, count in versions.items())
        if len(versions) > 1:
            raise UserError(
                f"The cells of the stage {stage!r} were run by {len(versions)} versions of the package: {told}. They "
                "are not put into one table: remove those of one version."
            )
        if here is not None and any(here[name] != group[0].facts.get(name) for name in VERSION):
            own = ", ".join(f"{name} {here[name]}" for name in VERSION)
            raise UserError(
                f"The stage {stage!r} has cells: {told}. This is {own}, and its cells may not stand beside them. "
                f"Check out the commit that they ran in ({group[0].commit}), or remove the cells of this stage."
            )


def processor() -> str:
    """Return the name of this machine's processor, with the instruction sets that decide how fast it multiplies."""
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor() or platform.machine()
    text = information.read_text(encoding="utf-8")
    name = re.search(r"^model name\s*: (.+)$", text, re.M)
    flags = re.search(r"^flags\s*: (.+)$", text, re.M)
    known = set(flags[1].split()) if flags else set()
    sets = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in known]
    return f"{name[1] if name else platform.machine()} ({', '.join(sets) or 'no vector instructions known'})"
