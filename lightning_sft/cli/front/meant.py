"""What a value can only mean: a file of settings, a model's name, the path of a class, the path of rows."""

from __future__ import annotations

from pathlib import Path

from lightning_sft.cli.front.listing import listing
from lightning_sft.places import RUN_SETTINGS, SUFFIXES, suffix

#: endings of files of settings
YAML = (".yaml", ".yml", ".json")


def is_settings_file(word: str) -> bool:
    """Return whether a word names a file of settings that exists, or a run's folder, in which one lies."""
    path = Path(word)
    return path.is_file() if path.suffix in YAML else (path / RUN_SETTINGS).is_file()


def is_model_name(value: str) -> bool:
    """Return whether ``--model VALUE`` can only be a model's name: no settings, no path of a class."""
    if not value or is_settings_file(value) or value.lstrip()[0] in "{[" or "\n" in value or value == "null":
        return False
    return not may_be_class(value)


def may_be_class(value: str) -> bool:
    """Return whether a word reads like the path of a class, such as ``my_module.MyModule``."""
    parts = value.split(".")
    named = len(parts) > 1 and all(part.isidentifier() for part in parts) and parts[-1] != "gguf"
    return value == "SFTModule" or named


def is_data_path(key: str, value: str) -> bool:
    """Return whether the value of a setting such as ``data.train`` is a path or a hub name, not a class or a list."""
    known = listing().of_class(key)
    if value in {*known, *(kind.path for kind in known.values())} or value.lstrip()[:1] in ("{", "["):
        return False
    return not (may_be_class(value) and suffix(Path(value)) not in SUFFIXES)
