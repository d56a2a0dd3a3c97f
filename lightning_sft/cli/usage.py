"""The parser of verbs that take no settings of ``fit``: its help and its refusals in the words of all verbs."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from typing import NoReturn

from typing_extensions import override

from lightning_sft.cli.front.help import screen_width
from lightning_sft.cli.front.names import nearest
from lightning_sft.cli.front.needs import missing
from lightning_sft.cli.verbs import EXAMPLES, OWN_VERBS
from lightning_sft.errors import UserError

#: what a type is called in messages
_TYPES = {"int": "a whole number", "float": "a number", "Path": "a path"}


class VerbParser(argparse.ArgumentParser):
    """Parses a verb's own options.

    Args:
        verb: whose.
        usage: what follows it.
        about: what else there is to know, for its help.
    """

    def __init__(self, verb: str, usage: str, about: str = "") -> None:
        super().__init__(f"lightning {verb}", usage=f"lightning {verb} {usage}", description=about, allow_abbrev=False)
        self.verb = verb

    @override
    def error(self, message: str) -> NoReturn:
        """Raise what argparse says, in our words."""
        raise UserError(self._in_words(message))

    @override
    def format_help(self) -> str:
        """Return the help as that of the verbs with settings: usage, what it does, an example, the options."""
        width = screen_width()
        lines = [f"usage: {self.usage}", f"  {OWN_VERBS[self.verb].help}", ""]
        lines += [self.description.strip("\n"), ""] if self.description else []
        if EXAMPLES[self.verb] not in (self.description or ""):
            lines += ["example:", f"  {EXAMPLES[self.verb]}", ""]
        return "\n".join([*lines, "options:", *self._options(width)]) + "\n"

    def _options(self, width: int) -> Iterator[str]:
        for action in self._actions:
            if action.help == argparse.SUPPRESS:
                continue
            value = "" if action.nargs == 0 else f" {_value(action)}"
            name = f"{', '.join(action.option_strings)}{value}".strip()
            yield f"  {name}"
            yield from textwrap.wrap(self._expand(action), width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)

    def _expand(self, action: argparse.Action) -> str:
        text = (action.help or "").rstrip(".")
        if action.choices is not None:
            text += f". One of: {', '.join(map(str, action.choices))}"
        if action.default not in (None, argparse.SUPPRESS) and action.nargs != 0 and "Default: " not in text:
            text += f". Default: {action.default}"
        return f"{text}."

    def _in_words(self, message: str) -> str:
        required = re.fullmatch(r"the following arguments are required: (.*)", message)
        if required:
            return missing(self.verb, self._required(required.group(1).split(", ")))
        unknown = re.fullmatch(r"unrecognized arguments: (.*)", message)
        if unknown:
            return self._unknown(unknown.group(1))
        about = re.fullmatch(r"argument ([^:]+): (.*)", message, flags=re.DOTALL)
        if about:
            name = about.group(1).partition("/")[0]
            if "expected" in about.group(2):
                return f"{name} has no value. {self._of(name)}"
            return self._wrong(name, about.group(2))
        return f"{message}. `{self.prog} --help` lists the options."

    def _required(self, names: list[str]) -> str:
        told = [f"{name.partition('/')[0]} ({self._of(name.partition('/')[0])})" for name in names]
        return ", ".join(told[:-1]) + (" and " if len(told) > 1 else "") + told[-1]

    def _of(self, name: str) -> str:
        """Return the help of an option or a positional."""
        found = next((a for a in self._actions if name in a.option_strings or name == a.metavar), None)
        return "" if found is None else self._expand(found)

    def _unknown(self, text: str) -> str:
        word = text.split()[0]
        name = word.partition("=")[0]
        if not name.startswith("-"):
            return f"`{self.prog}` cannot read {word!r}, which stands by itself. Usage: {self.usage}"
        options = [o.removeprefix("--") for a in self._actions for o in a.option_strings]
        meant = nearest(name.lstrip("-"), options)
        hint = "." if meant is None else f"; did you mean --{meant}?"
        return f"There is no option {name}{hint} Options: {', '.join(f'--{o}' for o in options if len(o) > 2)}."

    def _wrong(self, name: str, said: str) -> str:
        given = re.search(r"invalid (\w+ )?(?:value|choice): '(.*?)'", said, flags=re.DOTALL)
        found = next((a for a in self._actions if name in a.option_strings or name == a.dest), None)
        if given is None or found is None:
            return f"{name}: {said}. `{self.prog} --help` lists the options."
        if found.choices is None:
            return (
                f"{name} is {given.group(2)!r}. Allowed: {_TYPES.get((given.group(1) or '').strip(), 'another value')}."
            )
        choices = [str(choice) for choice in found.choices]
        meant = nearest(given.group(2), choices, {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"})
        hint = "." if meant is None else f"; did you mean {meant!r}?"
        name = f"{name} is" if found.option_strings else f"`{self.prog}` got"
        return f"{name} {given.group(2)!r}{hint} Allowed: {', '.join(choices)}."


def _value(action: argparse.Action) -> str:
    """Return what stands for an option's value in the help."""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    return action.metavar or (action.dest.upper() if action.option_strings else action.dest)
