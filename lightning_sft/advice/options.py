"""Options of a command line, for the command that a page ends with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

#: options that set a learning rate, and those that name an objective, in short and in full
RATE: Final = ("--lr", "--model.optimizer.lr", "--model.optimizer.init_args.lr")
OBJECTIVE: Final = ("--objective", "--model.objective")


def value_of(arguments: Sequence[str], name: str) -> str | None:
    """Return the value of an option, written ``--name value`` or ``--name=value``; None without one.

    >>> value_of(["--set", "train", "--data=rows.jsonl"], "--data"), value_of(["--data"], "--data")
    ('rows.jsonl', None)
    """
    left = iter(arguments)
    for argument in left:
        found, equals, value = argument.partition("=")
        if found == name:
            return value if equals else next(left, None)
    return None


def without(arguments: Sequence[str], names: Collection[str]) -> list[str]:
    """Return arguments without some options, written ``--name value`` or ``--name=value``."""
    kept: list[str] = []
    dropped = False
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, _ = argument.partition("=")
            dropped = name in names
            if dropped and equals:
                dropped = False
                continue
        if not dropped:
            kept.append(argument)
    return kept


def files_first(arguments: Sequence[str]) -> list[str]:
    """Return arguments as one types them: files of settings by themselves, before all options.

    >>> files_first(["--lr", "1e-3", "--config=a.yaml", "-c", "b.yaml"])
    ['a.yaml', 'b.yaml', '--lr', '1e-3']
    """
    left, files, rest = list(arguments), [], []
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if name not in ("--config", "-c"):
            rest.append(argument)
        elif equals or left:
            files.append(value if equals else left.pop(0))
    return [*files, *rest]


def without_objective(arguments: Sequence[str]) -> list[str]:
    """Return arguments without those that name an objective, and its arguments."""
    names = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    return without(arguments, [n for n in names if n in OBJECTIVE or n.startswith(tuple(f"{o}." for o in OBJECTIVE))])
