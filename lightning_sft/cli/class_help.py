"""``--model.adapter.help LoraConfig``: a class's arguments in the words of all help; without a class, the classes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

from lightning_sft.cli.front.help import screen_width
from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.names import USUAL_OPTIONS
from lightning_sft.cli.front.say import KINDS, unknown_class_of
from lightning_sft.cli.front.words import WORDS, class_of_word, split
from lightning_sft.errors import UserError
from lightning_sft.progress import loading


def class_help(verb: str, arguments: Sequence[str]) -> str | None:
    """Return the help that arguments ask for of a setting that takes classes; None where they ask for none.

    Args:
        verb: of the command line.
        arguments: those after it, tidied.

    Returns:
        None, too, for a class that is not in the list of settings: the parser knows it, once it is imported.

    Raises:
        UserError: no class of that name.
    """
    for name, values, _ in split(arguments):
        word, _, rest = name.removeprefix("--").removesuffix(".help").partition(".")
        key = f"{WORDS.get(word, word)}{rest and f'.{rest}'}"
        classes = listing().of_class(key)
        if not name.endswith(".help") or not classes:
            continue
        if not values:
            return _classes(verb, key)
        asked = class_of_word(key, values[0]) or values[0]
        found = classes.get(asked) or next((c for c in classes.values() if c.path == asked), None)
        if found is not None:
            return _class(key, found.path)
        if "." not in asked:
            raise UserError(unknown_class_of(key, asked))
    return None


def _classes(verb: str, key: str) -> str:
    kind, many = KINDS.get(listing().settings[key].bases[0], ("a class", "Classes"))
    names = ", ".join(listing().of_class(key))
    return "\n".join(
        [
            f"usage: lightning {verb} --{key} CLASS, with --{key}.ARGUMENT VALUE",
            f"  {kind}, by a name of this list or as my_module.MyClass",
            "",
            f"{many.lower()}:",
            *textwrap.wrap(names, screen_width() - 2, initial_indent="  ", subsequent_indent="  "),
            "",
            f"The arguments of one: lightning {verb} --{key}.help {next(iter(listing().of_class(key)))}",
        ]
    )


def _class(key: str, path: str) -> str:
    """Return a class's arguments with their defaults and what its docstring says of them."""
    module, _, name = path.rpartition(".")
    with loading():
        found: Any = getattr(importlib.import_module(module), name)
        from docstring_parser import parse_from_object

    said = parse_from_object(found)
    texts = {one.arg_name: one.description or "" for one in said.params}
    fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
    texts |= {field.name: field.metadata["help"] for field in fields if "help" in field.metadata}
    own = next(c for c in listing().of_class(key).values() if c.path == path)
    lines = [
        f"usage: --{key} {name} --{key}.ARGUMENT VALUE",
        f"  {path}: {said.short_description or ''}",
        "",
        "arguments:",
    ]
    parameters = inspect.signature(found).parameters
    usual = USUAL_OPTIONS.get(name, ())
    for option in [*usual, *(option for option in own.options if option not in usual)]:
        default = parameters[option].default if option in parameters else inspect.Parameter.empty
        # a dataclass makes the default of a field anew each time, and shows a mark in its place
        shown = repr(default).startswith(("<", "inspect"))
        tail = "" if default is inspect.Parameter.empty or shown else f" [{_text(default)}]"
        lines.append(f"  --{key}.{option}")
        text = " ".join(f"{texts.get(option, '').replace('`', '')}{tail}".split())
        lines += textwrap.wrap(text, screen_width() - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _text(default: object) -> str:
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
