"""Rows on the command line beside a run: read under its training rows' column names, and its only validation set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.given import Given, read_given
from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.meant import is_data_path
from lightning_sft.cli.front.values import NULL, is_inline
from lightning_sft.cli.front.words import SETS, as_typed, expand, in_settings, split
from lightning_sft.errors import UserError
from lightning_sft.places import CHECKPOINTS, RUN_SETTINGS, data_files

#: options that name a model, which may be a run, a checkpoint in one, or what was exported into one
_MODELS = ("--after", "--ckpt_path", "--model")
#: a setting that is typed, the setting of a file that it replaces, and what the remark says of the latter
_VALIDATION = (
    ("data.val", "data.val_split", "holds no rows out of data.train"),
    ("data.val_split", "data.val", "is not read"),
)
Columns = dict[str, str]


def settle_rows(verb: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return arguments in which rows typed beside a run's settings stand as they are meant, and remarks that say so.

    A file typed on the command line whose rows have the columns that the training rows are mapped from is mapped in
    the same way, unless it is given columns of its own. Rows to validate on that are typed take the place of those
    that a file of settings holds out, and the other way round.

    Args:
        verb: of the command line.
        arguments: those after the verb, tidied; files that they name are there.
    """
    made: list[str] = list(arguments)
    remarks: list[str] = []
    every = list(read_given(expand(in_settings(verb, arguments)), listing()))
    if any(one.key in ("data", "data.class_path") and not _is_file(one) for one in every):
        return made, remarks  # a class of the user's own may mean something else by them
    for key in (option.removeprefix("--") for option in SETS):
        path = _typed_path(key, every)
        known = [] if path is None else _known(key, every, arguments)
        if path is not None and (columns := _fitting(path, known, answers=key != "data.predict")):
            made.append(f"--{key}.columns={json.dumps(columns)}")
            said = ", ".join(f"{theirs} is read as {ours}" for ours, theirs in columns.items())
            remarks.append(f"{path}: {said}, as in the training rows; --{key}.columns decides otherwise.")
    for typed, other, then in _VALIDATION:
        if _is_typed(typed, every) and not _is_typed(other, every) and (one := _set_by_file(other, every)) is not None:
            made.append(f"--{other}=null")
            remarks.append(f"{as_typed(arguments, typed)} was typed, so {other} of {one.file} {then}.")
    return made, remarks


def _is_file(one: Given) -> bool:
    """Return whether ``--data`` names a file of settings, which has been taken apart."""
    return one.key == "data" and isinstance(one.value, str) and Path(one.value).is_file()


def _is_typed(key: str, every: Sequence[Given]) -> bool:
    return any((one.key == key or one.key.startswith(f"{key}.")) and not one.file for one in every)


def _set_by_file(key: str, every: Sequence[Given]) -> Given | None:
    """Return what files set a key to in the end, if that is anything."""
    last = next((one for one in reversed(every) if one.key == key), None)
    value = last.value.value if last is not None and isinstance(last.value, yaml.ScalarNode) else None
    return None if last is None or value in NULL else last


def _typed_path(key: str, every: Sequence[Given]) -> str | None:
    """Return the path of rows that was typed for a setting, unless its columns were typed, too."""
    own = [one for one in every if not one.file and (one.key == key or one.key.startswith(f"{key}."))]
    if any("columns" in one.key.split(".") for one in own):
        return None
    places = (key, f"{key}.path", f"{key}.init_args.path")
    found = [one.value for one in own if one.key in places and isinstance(one.value, str)]
    path = found[-1] if found else ""
    return path if path not in NULL and not is_inline(path) and is_data_path(key, path) else None


def _known(key: str, every: Sequence[Given], arguments: Sequence[str]) -> list[Columns]:
    """Return the mappings of a setting and of the training rows, or else those of the run that a model is from."""
    for given in (every, list(_settings_of_models(arguments))):
        for wanted in (key, "data.train"):
            found = [columns for one in given for columns in _columns_of(wanted, one)]
            if found:
                return found
    return []


def _columns_of(key: str, one: Given) -> Iterator[Columns]:
    """Yield the mappings that something given holds for a setting."""
    node = one.value
    if isinstance(node, str) and is_inline(node):
        try:
            node = yaml.compose(node, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            return  # the parser says what is wrong with it
    value: Any = yaml.safe_load(yaml.serialize(node)) if isinstance(node, yaml.Node) else node
    if one.key == key:
        yield from _inside(value)
    elif one.key in (f"{key}.columns", f"{key}.init_args.columns") and isinstance(value, dict):
        yield {str(ours): str(theirs) for ours, theirs in value.items()}


def _inside(value: Any) -> Iterator[Columns]:
    """Yield the mappings of the sources in a value."""
    if isinstance(value, list):
        for item in value:
            yield from _inside(item)
    elif isinstance(value, dict):
        arguments = value.get("init_args")
        if isinstance(arguments, dict) and isinstance(arguments.get("columns"), dict):
            yield {str(ours): str(theirs) for ours, theirs in arguments["columns"].items()}
        else:
            for item in value.values():
                yield from _inside(item)


def _settings_of_models(arguments: Sequence[str]) -> Iterator[Given]:
    """Yield the settings of the runs that models on the command line are from."""
    for name, values, _ in split(arguments):
        place = Path(values[0]).expanduser() if name in _MODELS and values else Path()
        for folder in (place, *place.parents[:2]) if place.parts else ():
            if (folder / RUN_SETTINGS).is_file() and (folder / CHECKPOINTS).is_dir():
                yield from read_given(["--config", str(folder / RUN_SETTINGS)], listing())
                break


def _fitting(path: str, known: Sequence[Columns], *, answers: bool) -> Columns | None:
    """Return the one mapping that suits the rows of a path; None where none does, several do, or rows are elsewhere."""
    if not known:
        return None
    from lightning_sft.data.reading.guess import first_rows, suits  # with numpy, which most commands start without

    try:
        files = data_files(path)
    except UserError:
        return None  # said where it is read
    rows = first_rows(files[0]) if files else []
    fitting = [columns for columns in known if columns and suits(rows, columns, answers=answers)]
    return fitting[0] if fitting and all(columns == fitting[0] for columns in fitting) else None
