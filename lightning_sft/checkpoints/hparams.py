"""Which settings of a module may stand in a checkpoint: plain data, so that it loads with ``weights_only``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any


def is_plain(value: object) -> bool:
    """Return whether a setting is made of None, strings, numbers, lists and dicts alone."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return value is None or isinstance(value, str | int | float | bool)


def objects_in(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings that are no plain data."""
    return [name for name, value in settings.items() if not is_plain(value)]


def drop_objects(several: Iterable[MutableMapping[str, Any]]) -> None:
    """Leave plain data alone in collections of hyperparameters, in place."""
    for hparams in several:
        for name in objects_in(hparams):
            del hparams[name]
