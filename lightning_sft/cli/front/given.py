"""What a command line and its files of settings give, key by key, each with the place where it stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.listing import Listing
from lightning_sft.cli.front.meant import YAML, is_settings_file
from lightning_sft.cli.front.words import split
from lightning_sft.errors import UserError
from lightning_sft.places import near_file

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SECTIONS = ("model", "data", "trainer")


@dataclass(frozen=True)
class Given:
    """A value that was given for a key.

    Attributes:
        key: such as ``model.objective``; a plus at its end appends.
        value: the text, None without one, or a node of a file.
        file: the file that it stands in; empty for the command line.
        line: its line there, from 1.
    """

    key: str
    value: str | yaml.Node | None
    file: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        """The start of a message about it."""
        return f"{self.file}, line {self.line}: " if self.file else ""

    @property
    def name(self) -> str:
        """The key as it was written: with dashes on the command line."""
        return self.key if self.file else f"--{self.key}"


def read_given(arguments: Sequence[str], listing: Listing) -> Iterator[Given]:
    """Yield what arguments give, in their order.

    Args:
        arguments: with long keys.
        listing: says which keys are settings; below a setting a file is not taken apart.

    Raises:
        UserError: a file that does not exist, is empty, or is no YAML.
    """
    for name, values, _ in split(arguments):
        key = name.removeprefix("--")
        value = values[0] if values else None
        if name in ("--config", "-c") and value is not None:
            yield from _file("", value, listing)
        elif key in SECTIONS and value is not None and (is_settings_file(value) or _is_inline(value)):
            yield from _file(f"{key}.", value, listing)
        elif name.startswith("--"):
            yield Given(key, value)


def has_files_elsewhere(arguments: Sequence[str]) -> bool:
    """Return whether settings lie at an address such as ``s3://bucket/run.yaml``, which only the parser reads."""
    return any("://" in value for name, values, _ in split(arguments) if name in ("--config", "-c") for value in values)


def _is_inline(value: str) -> bool:
    return value.lstrip().startswith("{") or "\n" in value


def _file(prefix: str, value: str, listing: Listing) -> Iterator[Given]:
    if _is_inline(value):
        root, place = _compose(value, "--config"), ""
    elif "://" in value:
        return
    else:
        place = value
        root = _compose(_read(value), value)
        if root is None:
            raise UserError(f"{value} is empty. Write settings into it (`lightning init` makes such a file).")
    if not isinstance(root, yaml.MappingNode):
        kind = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise UserError(f"{place or '--config'} holds {kind}. Allowed: settings as KEY: VALUE, such as `model:`.")
    yield from _flat(prefix, root, place, listing)


def _read(name: str) -> str:
    path = Path(name)
    if path.is_dir():
        raise UserError(f"--config is {name!r}, a folder. Give the YAML file, such as {str(path / 'config.yaml')!r}.")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"There is no file {name!r} in {str(Path.cwd())!r}.{near_file(name, YAML)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is no text in UTF-8: {error.reason}. Give a YAML file.") from error


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        said = getattr(error, "problem", None) or str(error)
        if "\t" in said or "'\\t'" in said:
            said += ". Indent with spaces"
        raise UserError(f"{name}{line}: this is no YAML: {said}. Correct it there, or in the line above.") from error


def _flat(prefix: str, node: yaml.MappingNode, file: str, listing: Listing) -> Iterator[Given]:
    """Yield the settings of a mapping; what stands below a setting is left to it."""
    for key_node, value in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            continue
        key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
        bare = key.rstrip("+")
        is_section = bare in SECTIONS or any(k.startswith(f"{bare}.") for k in listing.settings)
        if isinstance(value, yaml.MappingNode) and is_section and bare not in listing.settings:
            yield from _flat(f"{key}.", value, file, listing)
        else:
            yield Given(key, value, file, line)
