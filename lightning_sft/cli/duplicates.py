"""Keys that stand twice in one mapping of a configuration: YAML and JSON readers take the last one without a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from lightning_sft.errors import UserError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def refuse_duplicates(arguments: Sequence[str]) -> None:
    """Raise if a mapping in the files or values of a command line has a key twice.

    Args:
        arguments: of the command line.

    Raises:
        UserError: names file and lines.
    """
    for where, text in _texts(arguments):
        try:
            root = yaml.compose(text, Loader=_LOADER)
        except yaml.YAMLError:
            continue  # the parser says what is wrong with it
        for path, first, second in _twice(root, ()):
            lines = f", lines {first} and {second}" if "\n" in text.strip() else ""
            raise UserError(
                f"{where} has {'.'.join(path)!r} twice{lines}. Only the last one would be read: give each a name of "
                "its own, or put them together."
            )


def _texts(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what may hold mappings, each with where it stands."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = argument.partition("=")
        if not name.startswith("-"):
            continue
        value = value if equals else following
        if "{" in value or "\n" in value:
            yield name, value
            continue
        path = Path(value)
        if path.suffix in (".yaml", ".yml") or (path.suffix == ".json" and name in ("--config", "-c")):
            try:
                yield str(path), path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue  # the parser says what is wrong with it


def _twice(node: yaml.Node | None, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """Yield the path of each key that stands twice, and its two lines, from 1."""
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _twice(item, (*path, str(i)))
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        own, line = (*path, key.value), key.start_mark.line + 1
        if key.value in seen and key.value != "<<":
            yield own, seen[key.value], line
        seen[key.value] = line
        yield from _twice(value, own)
