"""Probes from YAML, JSON lines, Python and the shipped library, and back into a file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_sft.errors import UserError
from lightning_sft.files import write_text
from lightning_sft.places import here_or_shipped
from lightning_sft.probes.evidence import EVIDENCE
from lightning_sft.probes.probe import Probe, named

#: the worst contexts of a run, as it writes them
SILENT = "silent.jsonl"
LIBRARY = Path(__file__).parent / "library.yaml"
FIELDS = tuple(f.name for f in dataclasses.fields(Probe))
#: what a probe must have: as text, or as ids
NEEDED = {False: ("context", "correct", "competitor"), True: ("context_ids", "correct_id")}
CHOICES = {"kind": ("synonym", "control"), "split": ("train", "test", None)}


def load_probes(probes: str | Path | Sequence[Probe | Mapping[str, Any]]) -> tuple[Probe, ...]:
    """Return named probes from any of their sources.

    Args:
        probes: ``"library"`` (all of it), ``"library:train"``, ``"library:test"``; the path of a ``.yaml``, ``.yml``
            or ``.jsonl`` file; or probes, or mappings with their fields.

    Raises:
        UserError: no such file, an unknown or a missing field, or a probe that cannot be one.
    """
    if isinstance(probes, str) and probes.partition(":")[0] == "library":
        return named(library(probes.partition(":")[2] or None))
    if isinstance(probes, str | Path):
        return named(_from_file(Path(here_or_shipped(str(probes))).expanduser()))
    return named([_made(p, f"entry {i}") for i, p in enumerate(probes)])


def library(split: str | None = None) -> tuple[Probe, ...]:
    """Return the shipped probes: near-synonym pairs in train and test contexts, and controls.

    Args:
        split: ``"train"`` or ``"test"``; None is both.

    Raises:
        UserError: an unknown split.
    """
    if split not in CHOICES["split"]:
        raise UserError(f"The library has no split {split!r}. Allowed: library, library:train, library:test.")
    return named([p for p in _from_file(LIBRARY) if split in (None, p.split)])


def _from_file(path: Path) -> list[Probe]:
    if not path.is_file():
        raise UserError(
            f"There is no probe file {str(path)!r} (looked from {Path.cwd()}). Allowed: 'library', 'library:train', "
            "'library:test', or a .yaml, .yml or .jsonl file."
        )
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
        _require_some(lines, path)
        return [_made(_parsed(line, f"{path}, line {i}"), f"{path}, line {i}") for i, line in lines]
    if path.suffix not in {".yaml", ".yml"}:
        raise UserError(f"The probe file {str(path)!r} ends in {path.suffix!r}. Allowed: .yaml, .yml, .jsonl.")
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"The probe file {str(path)!r} is no YAML: {error}") from error
    if entries is None or entries == []:
        _require_some([], path)
    if not isinstance(entries, list):
        raise UserError(f"The probe file {str(path)!r} holds {type(entries).__name__}; it must be a list of probes.")
    return [_made(entry, f"{path}, entry {i}") for i, entry in enumerate(entries)]


def _require_some(entries: Sequence[object], path: Path) -> None:
    """Raise where a file of probes holds none.

    Raises:
        UserError: says what an empty file means, and what to give.
    """
    if entries:
        return
    if path.name == SILENT:
        raise UserError(
            f"{str(path)!r} is empty: in that run no right word stayed behind another one while its loss fell, so "
            "it has no context to probe. Give the silent.jsonl of another run, shipped probes (library:train), probes "
            "that `lightning mine-probes` finds in a text of yours, or a file that you write: docs/near_synonyms.md "
            "shows one."
        )
    raise UserError(
        f"The probe file {str(path)!r} holds no probe. Each needs a context, the correct word and its competitor; "
        "docs/near_synonyms.md shows a file, and `lightning mine-probes` makes one from a text of yours."
    )


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is no JSON: {error}") from error


def _made(entry: object, where: str) -> Probe:
    """Return a probe from one entry of a file."""
    if isinstance(entry, Probe):
        return entry
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is {entry!r}; it must be a mapping with context, correct and competitor.")
    by_ids = entry.get("context_ids") is not None
    missing = [n for n in NEEDED[by_ids] if n not in entry and f"{n}_id" not in entry]
    unknown = sorted(set(map(str, entry)) - set(FIELDS) - set(EVIDENCE))
    if missing or unknown:
        raise UserError(f"{where} lacks {missing} and has unknown fields {unknown}. Fields of a probe: {list(FIELDS)}.")
    entry = {name: value for name, value in entry.items() if name in FIELDS}
    for name, allowed in CHOICES.items():
        if name in entry and entry[name] not in allowed:
            raise UserError(f"{where} has {name}={entry[name]!r}. Allowed: {list(allowed)}.")
    for name in ("context", "correct", "competitor"):
        if not isinstance(entry.get(name, ""), str):
            raise UserError(f"{where} has {name}={entry[name]!r}, which YAML does not read as text. Put it in quotes.")
    if by_ids and not isinstance(entry["context_ids"], list | tuple):
        raise UserError(f"{where} has context_ids={entry['context_ids']!r}; it must be a list of token ids.")
    return Probe(**entry)


def require_probe_ending(path: Path) -> None:
    """Raise unless probes can be written to a file of that name.

    Raises:
        UserError: another ending.
    """
    if path.suffix not in {".jsonl", ".yaml", ".yml"}:
        raise UserError(f"A probe file cannot be written to {str(path)!r}. Allowed endings: .yaml, .yml, .jsonl.")


def save_probes(probes: Iterable[Probe], path: str | Path) -> Path:
    """Write probes into a ``.yaml``, ``.yml`` or ``.jsonl`` file that `load_probes` reads back the same.

    Raises:
        UserError: another ending.
    """
    path = Path(path).expanduser()
    require_probe_ending(path)
    defaults = {f.name: f.default for f in dataclasses.fields(Probe)}
    entries = [
        {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(p).items() if v != defaults[k]}
        for p in probes
    ]
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    else:
        text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=120)
    write_text(path, text)
    return path
