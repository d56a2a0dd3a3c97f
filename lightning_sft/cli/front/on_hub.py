"""Names of the hub in a command line: told before torch is imported where the hub cannot be asked for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.front.given import read_given
from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.present import READS, named_rows
from lightning_sft.cli.front.values import NULL
from lightning_sft.cli.front.words import expand, split
from lightning_sft.errors import UserError
from lightning_sft.hub import OFFLINE, is_cached, is_hub_name, require_on_hub, why_not_reached
from lightning_sft.places import CHECKPOINT_WORDS, data_files

#: settings that name a model, a tokenizer or an adapter
_SETTINGS = ("model.model_name_or_path", "model.tokenizer_name_or_path", "model.reference", "model.adapter_path")
#: verb -> its own options that do
_OPTIONS = {
    "audit": ("--after", "--before", "--base"),
    "chat": ("--model", "--before", "--base"),
    "mine-probes": ("--model",),
    "score": ("--base",),
}


def settle_hub(verb: str, arguments: Sequence[str], *, settings: bool = False) -> str:
    """Look whether models that are named can be had; where the cache has them and the hub does not answer, say so.

    The hub's library would try for a minute to reach it, for every file.

    Args:
        verb: of the command line.
        arguments: those after it, tidied.
        settings: whether they are settings of ``fit``.

    Returns:
        A remark; empty without one.

    Raises:
        UserError: a name that is neither here nor in the cache, and no hub.
    """
    if any(os.environ.get(name) for name in OFFLINE):  # its library asks nobody then, and answers at once
        return ""
    cached = False
    for option, name, kind in _names(verb, arguments, settings=settings):
        if not is_hub_name(name) or name in CHECKPOINT_WORDS:
            continue
        try:
            require_on_hub(name, kind)
        except UserError as error:
            raise UserError(f"{option}: {error}") from None
        cached = cached or is_cached(name, kind)
    why = why_not_reached() if cached else None
    if why is None or "huggingface_hub" in sys.modules:  # which has read the variable by then
        return ""
    os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
    return f"{why}; what is on it is taken as the cache has it."


def _names(verb: str, arguments: Sequence[str], *, settings: bool) -> Iterator[tuple[str, str, str]]:
    """Yield what may be names of the hub, each behind its option or setting, with what it names."""
    for option, values, _ in split(arguments):
        if option in _OPTIONS.get(verb, ()) and values:
            yield option, values[0], "model"
    if not settings or verb == "init":  # which writes down what is still to come
        return
    given = {one.key: one for one in read_given(expand(arguments), listing())}
    if {"model", "model.class_path", "print_config"} & given.keys() or any(key.endswith("help") for key in given):
        return
    for key in _SETTINGS if verb != "audit" else ():
        one = given.get(key)
        value = one.value.value if one is not None and isinstance(one.value, yaml.ScalarNode) else one and one.value
        if one is not None and isinstance(value, str) and value not in NULL:
            yield f"{one.where}{one.name}", value, "model"
    if {"data", "data.class_path", "arm"} & given.keys():
        return
    for key in READS.get(verb, ()) if verb != "audit" else ():
        for at, kind, name in named_rows(key, given) if key in given else ():
            if kind == "Source" and name is not None and not data_files(name):
                yield f"{at.where}{at.name}", name, "dataset"
