"""When a run ends: as was typed; and one that nobody gave an end, after one pass over its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.given import Given, has_files_elsewhere, read_given
from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.values import NULL
from lightning_sft.cli.front.words import as_typed, expand

#: verbs that train, or tell what training would take
_TRAINING = ("fit", "advise", "forecast", "compare")
#: setting -> values by which it ends nothing
_ENDS = {"trainer.max_epochs": NULL, "trainer.max_steps": ("-1",), "trainer.max_time": NULL}
_CALLBACKS = ("EarlyStopping", "Timer")
#: of these, the first that is reached ends a run; at -1 it does not
_COUNTED = ("trainer.max_steps", "trainer.max_epochs")


def with_an_end(verb: str, arguments: Sequence[str]) -> tuple[list[str], str]:
    """Return arguments by which a run ends as its command says, and a remark about what was added to them.

    Where nothing ends it, ``--trainer.max_epochs=1`` does: Lightning would train for a thousand epochs. Steps that were
    typed decide over the epochs of a file, which would end the run first, and the other way round.

    Args:
        verb: of the command line.
        arguments: those after the verb, tidied.
    """
    if verb not in _TRAINING:
        return list(arguments), ""
    every = list(read_given(expand(arguments), listing()))
    given = {one.key: one for one in every}  # the last one of each key counts
    if (typed := _typed_end(given, arguments)) is not None:
        return [*arguments, f"--{typed[0]}=-1"], typed[1]
    ends = any(key in given and _text(given[key]) not in nothing for key, nothing in _ENDS.items())
    trains = any(key == "data" or key.startswith("data.") for key in given)
    if ends or not trains or has_files_elsewhere(arguments) or {"trainer", "arm", "print_config"} & given.keys():
        return list(arguments), ""
    callbacks = [_text(one) for one in every if one.key.rstrip("+") == "trainer.callbacks"]
    if any(name in text for name in _CALLBACKS for text in callbacks):
        return list(arguments), ""
    text = "nothing says when the run ends, so it makes one pass over its rows; --max_epochs or --max_steps decide."
    return [*arguments, "--trainer.max_epochs=1"], text


def _typed_end(given: Mapping[str, Given], arguments: Sequence[str]) -> tuple[str, str] | None:
    """Return the end of a file that is set aside for one that was typed, and a remark; None where there is no such."""
    named = {key: given[key] for key in _COUNTED if key in given}
    ends = {key: one for key, one in named.items() if _text(one) not in ("-1", *NULL)}
    typed = [key for key, one in ends.items() if not one.file]
    filed = [key for key, one in ends.items() if one.file]
    if len(typed) != 1 or len(filed) != 1:
        return None
    option, file = as_typed(arguments, typed[0]), ends[filed[0]].file
    return filed[0], f"{option} was typed, so {filed[0]} of {file} does not end the run."


def _text(one: Given) -> str:
    if isinstance(one.value, yaml.ScalarNode):
        return str(one.value.value)
    return str(yaml.serialize(one.value)) if isinstance(one.value, yaml.Node) else str(one.value or "")
