"""What an earlier call has written where this one would: found before torch is imported, answered with a command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.cli.front.words import Word, join, split
from lightning_sft.errors import OutputExistsError
from lightning_sft.places import free

#: verbs that write one file or folder, and nothing over it, where ``--output`` says
_WRITE = ("audit", "export", "init", "mine-probes", "predict", "score")
_OUTPUT = "--output"


def require_free_output(verb: str, arguments: Sequence[str]) -> None:
    """Raise if something lies where ``--output`` of a verb points.

    Args:
        verb: of the command line.
        arguments: after it, in one spelling.

    Raises:
        OutputExistsError: names it.
    """
    if verb not in _WRITE:
        return
    for name, values, _ in split(arguments):
        if name == _OUTPUT and values and Path(values[0]).expanduser().exists():
            raise OutputExistsError(values[0])


def say_in_the_way(error: OutputExistsError, verb: str, typed: Sequence[str]) -> str:
    """Return what is in the way, and the command that was typed with an ``--output`` at which nothing lies.

    Args:
        error: names what is there.
        verb: of the command line.
        typed: the arguments after it, as they were typed.
    """
    made: list[Word] = []
    for name, values, joined in split(typed):
        if name != _OUTPUT:
            made.append((name, values, joined))
        elif values[1:]:  # words by themselves that follow its value
            made.append(("", values[1:], False))
    beside = free(Path(error.path).expanduser())
    command = shlex.join(["lightning", verb, *join(made), _OUTPUT, str(beside)])
    return f"{error.path!r} exists, and nothing is overwritten. Beside it:\n  {command}"
