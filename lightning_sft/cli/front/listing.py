"""The list of settings that the package brings along, so that help and typos need no parser, and no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

#: written by ``python -m lightning_sft.cli.listing``
FILE = Path(__file__).with_name("settings.json")


@dataclass(frozen=True)
class Setting:
    """A setting of ``fit``, or an option of a verb.

    Attributes:
        takes: what it accepts: ``bool``, ``int``, ``float``, ``str``, ``null``, ``choice``, ``class``, ``list``,
            ``dict``, or ``flag`` for an option without a value.
        default: as text.
        help: of the docstring.
        choices: the words of ``choice``.
        bases: the classes whose subclasses it takes.
        required: whether there is nothing to run without it.
    """

    takes: tuple[str, ...]
    default: str = "null"
    help: str = ""
    choices: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True)
class KnownClass:
    """A class that settings may name.

    Attributes:
        path: where it is imported from.
        package: the distribution that brings it, such as ``peft``.
        options: its arguments.
        is_open: it passes further arguments on, so that ``options`` are not all.
    """

    path: str
    package: str
    options: tuple[str, ...]
    is_open: bool


@dataclass(frozen=True)
class Listing:
    """All settings, classes and options of verbs.

    Attributes:
        versions: of the packages whose classes are listed.
        settings: key to setting of ``fit``.
        classes: base class to name to class.
        verbs: verb to name to option, of the verbs that have options of their own.
    """

    versions: dict[str, str]
    settings: dict[str, Setting] = field(default_factory=dict)
    classes: dict[str, dict[str, KnownClass]] = field(default_factory=dict)
    verbs: dict[str, dict[str, Setting]] = field(default_factory=dict)

    def of_class(self, key: str) -> dict[str, KnownClass]:
        """Return the classes that a setting may name, by their short names; empty where it takes none."""
        found: dict[str, KnownClass] = {}
        setting = self.settings.get(key)
        for base in setting.bases if setting else ():
            found |= self.classes.get(base, {})
        return found

    def is_exact(self, known: KnownClass) -> bool:
        """Return whether a class is listed as it is installed here: another version may take other arguments."""
        return _installed(known.package) == self.versions.get(known.package)

    def to_json(self) -> str:
        """Return the text of the file."""
        made = json.loads(json.dumps(asdict(self), sort_keys=True))
        for verb, options in self.verbs.items():  # help shows them in their own order, those of most use first
            made["verbs"][verb] = {name: made["verbs"][verb][name] for name in options}
        return json.dumps(made, indent=1) + "\n"


def from_json(text: str) -> Listing:
    """Return the listing of a text that `Listing.to_json` made."""
    made: dict[str, Any] = json.loads(text)

    def setting(fields: dict[str, Any]) -> Setting:
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return Setting(**known)

    return Listing(
        made["versions"],
        {key: setting(fields) for key, fields in made["settings"].items()},
        {
            base: {n: KnownClass(c["path"], c["package"], tuple(c["options"]), c["is_open"]) for n, c in named.items()}
            for base, named in made["classes"].items()
        },
        {verb: {name: setting(fields) for name, fields in o.items()} for verb, o in made["verbs"].items()},
    )


@lru_cache(maxsize=1)
def listing() -> Listing:
    """Return the list that the package brings along."""
    return from_json(FILE.read_text(encoding="utf-8"))


@lru_cache
def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
