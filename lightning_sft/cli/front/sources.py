"""Options of a source whose path stands in a file of settings: ``lightning fit sft.yaml --train.columns ...``."""

from __future__ import annotations

from collections.abc import Sequence

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.given import read_given
from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.meant import is_data_path
from lightning_sft.cli.front.values import NULL
from lightning_sft.cli.front.words import SETS, expand


def spell_out_sources(verb: str, arguments: Sequence[str]) -> list[str]:
    """Return arguments in which a path of rows from a file is a `Source`, where options on the command line need one.

    Args:
        verb: of the command line; the ``--data FILE`` of an audit is its test set, and no file of settings.
        arguments: those after the verb, tidied.
    """
    if verb == "audit":
        return list(arguments)
    every = list(read_given(expand(arguments), listing()))
    made: list[str] = []
    for option in SETS:
        key = option.removeprefix("--")
        last = next((one for one in reversed(every) if one.key == key), None)
        asked = any(one.key.startswith(f"{key}.") and not one.file for one in every)
        if not asked or last is None or not last.file or not isinstance(last.value, yaml.ScalarNode):
            continue
        path = str(last.value.value)
        if path not in NULL and is_data_path(key, path):
            made += [f"{option}=Source", f"{option}.path={path}"]
    return [*made, *arguments]
