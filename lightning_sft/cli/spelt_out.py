"""Defaults that the parser spells out: ``{}`` where a dataclass may stand becomes the defaults of that class."""

from __future__ import annotations

import dataclasses
import pkgutil
from typing import Any

from jsonargparse import ArgumentParser, Namespace


def forget_spelt_out(settings: Any) -> None:
    """Take such defaults out of settings, in place: nobody set them, as LoftQ's of a plain LoRA.

    Args:
        settings: a parser's, with classes as ``class_path`` and ``init_args``.
    """
    if isinstance(settings, list):
        for part in settings:
            forget_spelt_out(part)
    if not isinstance(settings, Namespace):
        return
    path, given = settings.get("class_path"), settings.get("init_args")
    if isinstance(path, str) and isinstance(given, Namespace):
        kind = pkgutil.resolve_name(path)
        fields = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
        for name in [field.name for field in fields if field.default_factory is dict]:
            if isinstance(given.get(name), Namespace) and given[name] == _spelt_out(kind, name):
                del given[name]
    for part in list(vars(settings).values()):
        forget_spelt_out(part)


def _spelt_out(kind: type, name: str) -> Any:
    """Return what a parser makes of an empty mapping for an argument of a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, sub_configs=False)
    return parser.parse_object({name: {}}).get(name)
