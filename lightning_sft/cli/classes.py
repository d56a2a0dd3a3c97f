"""A user's subclass of SFTModule or SFTDataModule in the place of ours, wherever a configuration names it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_sft.cli.front.meant import is_model_name
from lightning_sft.cli.front.words import spell_out
from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from lightning_sft.module import SFTModule
from lightning_sft.places import DOCS

#: key of a configuration -> the class that stands there unless another is named
OURS: dict[str, type] = {"model": SFTModule, "data": SFTDataModule}
Classes = dict[str, type[LightningModule] | type[LightningDataModule]]


def choose_classes(arguments: Sequence[str]) -> tuple[Classes, list[str]]:
    """Return the classes of model and data, and the arguments in terms of their settings alone.

    Understood are ``class_path`` and ``init_args`` below ``model`` and ``data``, in files and on the command line, and
    ``--model mine.MyModule``. What comes back names settings as for our own classes: ``--model.lr_scheduler``, and so
    on, so that short keys and files without a class go on to work beside a class.

    Args:
        arguments: of the command line, the verb first.

    Raises:
        UserError: a class that cannot be imported, or is no subclass of ours.
    """
    chosen: Classes = dict(OURS)
    rewritten: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        key = name.removeprefix("--").partition(".")[0]
        if name in ("--config", "-c") or (key in OURS and name.startswith("--")):
            if not equals and left and not left[0].startswith("--"):
                value = left.pop(0)
                argument = f"{name}={value}"
            argument = _config(argument, value, chosen) if key not in OURS else _setting(argument, name, key, chosen)
        rewritten += [argument] if argument else []
    return chosen, rewritten


def with_classes(text: str, classes: Classes) -> str:
    """Return a configuration that names the classes which are not ours, so that it starts the same run again."""
    others = {key: kind for key, kind in classes.items() if kind is not OURS[key]}
    if not others:
        return text
    content = yaml.safe_load(text)
    for key, kind in others.items():
        content[key] = {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": content.get(key) or {}}
    return str(yaml.safe_dump(content, sort_keys=False))


def _config(argument: str, value: str, chosen: Classes) -> str:
    """Return the argument of a configuration file, its content in place of its name where it names a class."""
    path = Path(value)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return argument  # the parser says what is wrong with it
    if not isinstance(content, dict):
        return argument
    named = [key for key in OURS if isinstance(content.get(key), dict) and "class_path" in content[key]]
    for key in named:
        content[key] = _settings(key, content[key], chosen)
    changed = spell_out(content) or bool(named)
    return f"--config={yaml.safe_dump(content, sort_keys=False)}" if changed else argument


def _setting(argument: str, name: str, key: str, chosen: Classes) -> str:
    """Return an argument below ``model`` or ``data``, empty if it did nothing but name the class."""
    value = argument.partition("=")[2]
    if name == f"--{key}.class_path":
        chosen[key] = _subclass(key, value)
        return ""
    if name.startswith(f"--{key}.init_args."):
        return argument.replace(".init_args.", ".", 1)
    if name != f"--{key}" or Path(value).is_file():
        return argument
    content = yaml.safe_load(value)
    if isinstance(content, str):
        if key == "model" and _names_a_model(content):
            return f"--model.model_name_or_path={content}"
        chosen[key] = _subclass(key, content)
        return ""
    if isinstance(content, dict) and "class_path" in content:
        return f"--{key}={yaml.safe_dump(_settings(key, content, chosen), default_flow_style=True, width=10**6)}"
    return argument


def _names_a_model(value: str) -> bool:
    """Return whether ``--model VALUE`` is a model's name: it is no class, and no module is there to have it."""
    if is_model_name(value):
        return True
    top = value.partition(".")[0]
    return value != OURS["model"].__name__ and importlib.util.find_spec(top) is None


def _settings(key: str, content: dict[str, Any], chosen: Classes) -> dict[str, Any]:
    unknown = sorted(set(content) - {"class_path", "init_args"})
    if unknown:
        raise UserError(
            f"{key} names a class and holds {', '.join(unknown)} beside it. Allowed: class_path and init_args; move "
            "the settings below init_args."
        )
    chosen[key] = _subclass(key, str(content["class_path"]))
    return dict(content.get("init_args") or {})


def _subclass(key: str, path: str) -> type[Any]:
    """Import a class.

    Raises:
        UserError: it cannot be, or is no subclass of ours.
    """
    ours = OURS[key]
    if path in (ours.__name__, f"lightning_sft.{ours.__name__}"):
        return ours
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{key}: the class {path!r} cannot be imported: {error}. Allowed: module.Class of an installed module, or "
            f"of a file in this folder ({Path.cwd()})."
        ) from error
    if not (isinstance(found, type) and issubclass(found, ours)):
        raise UserError(
            f"{key}: {path!r} is no subclass of {ours.__name__}. A LightningModule of another kind runs with a Trainer "
            f"of its own. Which parts of this package it can use: {DOCS}/how_to/own_project.md"
        )
    return found
