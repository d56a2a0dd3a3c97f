"""When a run ends that nobody gave an end: after one pass over its rows."""

from __future__ import annotations

from collections.abc import Sequence

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.given import Given, has_files_elsewhere, read_given
from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.values import NULL
from lightning_sft.cli.front.words import expand

#: verbs that train, or tell what training would take
_TRAINING = ("fit", "advise", "forecast", "compare")
#: setting -> values by which it ends nothing
_ENDS = {"trainer.max_epochs": NULL, "trainer.max_steps": ("-1",), "trainer.max_time": NULL}
_CALLBACKS = ("EarlyStopping", "Timer")


def with_an_end(verb: str, arguments: Sequence[str]) -> tuple[list[str], str]:
    """Return arguments with ``--trainer.max_epochs=1`` where nothing else ends a run, and a remark about it.

    Lightning would train for a thousand epochs.

    Args:
        verb: of the command line.
        arguments: those after the verb, tidied.
    """
    if verb not in _TRAINING:
        return list(arguments), ""
    every = list(read_given(expand(arguments), listing()))
    given = {one.key: one for one in every}  # the last one of each key counts
    ends = any(key in given and _text(given[key]) not in nothing for key, nothing in _ENDS.items())
    trains = any(key == "data" or key.startswith("data.") for key in given)
    if ends or not trains or has_files_elsewhere(arguments) or {"trainer", "arm", "print_config"} & given.keys():
        return list(arguments), ""
    callbacks = [_text(one) for one in every if one.key.rstrip("+") == "trainer.callbacks"]
    if any(name in text for name in _CALLBACKS for text in callbacks):
        return list(arguments), ""
    text = "nothing says when the run ends, so it makes one pass over its rows; --max_epochs or --max_steps decide."
    return [*arguments, "--trainer.max_epochs=1"], text


def _text(one: Given) -> str:
    if isinstance(one.value, yaml.ScalarNode):
        return str(one.value.value)
    return str(yaml.serialize(one.value)) if isinstance(one.value, yaml.Node) else str(one.value or "")
