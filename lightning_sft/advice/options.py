"""Options of a command line, for the command that a page ends with."""

from __future__ import annotations

from collections.abc import Collection, Sequence


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
