"""Make the list of settings from the parser: ``python -m lightning_sft.cli.listing`` writes it into the package."""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module, metadata
from typing import Any, Literal, cast

import lightning.pytorch.accelerators
import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import lightning.pytorch.plugins
import lightning.pytorch.profilers
import lightning.pytorch.strategies
import peft
import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser
from lightning.pytorch.cli import ReduceLROnPlateau as FollowsMetric
from typing_extensions import override

import lightning_sft.callbacks
import lightning_sft.data
import lightning_sft.objectives
from lightning_sft.cli.front.listing import FILE, KnownClass, Listing, Setting
from lightning_sft.cli.lightning_cli import SFTCLI
from lightning_sft.cli.settings import SettingsCLI
from lightning_sft.cli.verbs import OWN_VERBS
from lightning_sft.files import write_text

#: where classes are looked for; a class counts for the room that names it first
ROOMS: tuple[Any, ...] = (
    lightning_sft.objectives,
    lightning_sft.callbacks,
    lightning_sft.data,
    lightning.pytorch.callbacks,
    lightning.pytorch.loggers,
    lightning.pytorch.profilers,
    lightning.pytorch.strategies,
    lightning.pytorch.accelerators,
    lightning.pytorch.plugins,
    torch.optim,
    torch.optim.lr_scheduler,
    peft,
)
#: module -> distribution
PACKAGES = {"lightning_sft": "lightning-sft", "lightning": "lightning", "torch": "torch", "peft": "peft"}
#: what the optimizer's and the scheduler's maker hands over itself
_HANDED_OVER = {"self", "args", "kwargs"}


class _Made(Exception):
    """Carries the parser out of LightningCLI."""


class _ParserOnly(SFTCLI):
    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        raise _Made(parser)


def fit_parser() -> LightningArgumentParser:
    """Return the parser of ``lightning fit``."""
    try:
        _ParserOnly(args=["fit"])
    except _Made as made:
        parser: LightningArgumentParser = made.args[0]
        verbs = [p for a in parser._actions if isinstance(a.choices, dict) for p in a.choices.values()]
        return cast("LightningArgumentParser", verbs[0])
    raise AssertionError("LightningCLI made no parser")


def make_listing() -> Listing:
    """Return the list of what the parsers of this version take."""
    bases: dict[str, type] = {}
    settings = {a.dest: _setting(a, bases) for a in fit_parser()._actions if _is_setting(a)}
    classes = {name: dict(sorted(_subclasses(base))) for name, base in sorted(bases.items())}
    named = {c.package for known in classes.values() for c in known.values()} - {"lightning-sft"}
    versions = {package: metadata.version(package) for package in sorted(named)}
    versions["lightning-sft"] = metadata.version("lightning-sft")
    return Listing(versions, settings, classes, dict(_options_of_verbs(settings)))


def _is_setting(action: argparse.Action) -> bool:
    if action.dest == "help" or action.dest.endswith(".help"):
        return False
    return type(action).__name__ not in ("_ActionConfigLoad", "_ActionHelpClassPath")


def _setting(action: argparse.Action, bases: dict[str, type]) -> Setting:
    """Return what is known of a parser's action; base classes are added to ``bases``."""
    takes: list[str] = []
    choices: list[str] = [str(c) for c in action.choices or ()]
    found: list[str] = []
    hint = getattr(action, "_typehint", None) or action.type
    for part in _parts(hint):
        kind = _kind(part)
        if kind == "choice":
            choices += [str(c) for c in typing.get_args(part)]
        for base in _bases(part):
            bases[base.__name__] = base
            found.append(base.__name__)
            takes.append("class")
        takes.append(kind)
    if action.nargs == 0 or type(action).__name__ == "_ActionPrintConfig":
        takes = ["flag"]
    elif choices and hint is None:
        takes = ["choice"]
    return Setting(
        tuple(dict.fromkeys(t for t in takes if t)) or ("str",),
        _text(action.default),
        _first_words(action.help or ""),
        tuple(dict.fromkeys(choices)),
        tuple(dict.fromkeys(found)),
        bool(action.required),
    )


def _parts(hint: Any) -> Iterator[Any]:
    """Yield the members of a union."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _parts(part)
    elif hint is not None:
        yield hint


def _kind(part: Any) -> str:
    origin = typing.get_origin(part)
    if part is type(None):
        return "null"
    if origin is Literal:
        return "choice"
    if part in (bool, int, float, str):
        return str(part.__name__)
    if origin in (list, tuple) or getattr(origin, "__name__", "") == "Iterable":
        return "list"
    if origin is dict or part is dict or part is Any:
        return "dict"
    if origin is not None or _is_class(part):
        return ""  # told by its base
    return "str"


def _is_class(part: Any) -> bool:
    return isinstance(part, type) and part.__module__.split(".")[0] in PACKAGES


def _bases(part: Any) -> Iterator[type]:
    """Yield the classes whose subclasses a member takes, of lists and of what makes them, too."""
    origin = typing.get_origin(part)
    if _is_class(part):
        yield part
    elif origin is not None and origin is not Literal:
        inside = typing.get_args(part)
        for inner in inside[-1:] if getattr(origin, "__name__", "") == "Callable" else inside:
            for one in _parts(inner):
                if not isinstance(one, list):
                    yield from _bases(one)


def _subclasses(base: type) -> Iterator[tuple[str, KnownClass]]:
    """Yield the classes that short names stand for where ``base`` is asked for."""
    if base.__module__.startswith("lightning_sft") and not base.__subclasses__():
        yield base.__name__, _known(base, base.__module__)  # such as a dataclass of settings
        return
    if base is FollowsMetric:
        yield base.__name__, _known(base, base.__module__)
        return
    seen: set[str] = set()
    for room in ROOMS:
        for name in getattr(room, "__all__", None) or dir(room):
            found = getattr(room, name, None)
            if not (isinstance(found, type) and issubclass(found, base)) or name in seen or found is base:
                continue
            if not inspect.isabstract(found):
                seen.add(name)
                yield name, _known(found, room.__name__)


def _known(found: type, module: str) -> KnownClass:
    parameters = inspect.signature(found).parameters.values()
    handed = {p.name for p in list(parameters)[:1]} if issubclass(found, torch.optim.Optimizer) else set()
    if module == "torch.optim.lr_scheduler" or found is FollowsMetric:
        handed = {"optimizer"}
    options = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    is_plain_module = getattr(found, "__init__", None) is torch.nn.Module.__init__  # which refuses all that it is given
    is_open = not is_plain_module and any(p.kind is p.VAR_KEYWORD for p in parameters)
    return KnownClass(
        f"{module}.{found.__name__}",
        PACKAGES[module.split(".")[0]],
        tuple(o for o in options if o not in _HANDED_OVER | handed),
        is_open,
    )


def _text(default: Any) -> str:
    if default is None or default == argparse.SUPPRESS:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    path = default.get("class_path") if hasattr(default, "get") else None
    return str(path or default)


def _first_words(text: str) -> str:
    """Return the help of a setting in one line of plain text, of Lightning's several the first sentence."""
    text = re.sub(r"\s+", " ", text.split("\nDefault:")[0]).strip()
    text = re.sub(r":\w+:`~?([^`<]+?)`", r"\1", text)
    text = re.sub(r"`+\"?([^`\"]+)\"?`+", r"\1", text)
    text = text.replace("``", "")  # around quotes and braces of their own
    return text if len(text) <= 240 else text[: text.rfind(". ", 0, 240) + 1] or text[:240]


def _options_of_verbs(settings: Iterable[str]) -> Iterator[tuple[str, dict[str, Setting]]]:
    """Yield the options that a verb has beside the settings of ``fit``."""
    for verb, own in OWN_VERBS.items():
        module = import_module(own.module)
        actions: list[argparse.Action] = []
        make: Callable[[], argparse.ArgumentParser] | None = getattr(module, "parser", None)
        if make is not None:
            actions = make()._actions
        for found in vars(module).values():
            if isinstance(found, type) and issubclass(found, SettingsCLI) and found.verb == verb:
                parser = LightningArgumentParser(add_help=False)
                found.add_arguments_to_parser(found.__new__(found), parser)
                actions = parser._actions
        options = {
            name.removeprefix("--"): _setting(a, {}) for a in actions if _is_setting(a) for name in a.option_strings
        }
        options = {name: option for name, option in options.items() if name not in settings}
        if options:
            yield verb, options


if __name__ == "__main__":
    write_text(FILE, make_listing().to_json())
