"""Options as people type them: in short where there is a short word, and with two dashes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_sft.cli.front.listing import listing
from lightning_sft.cli.front.names import nearest, nearest_setting
from lightning_sft.cli.front.words import ADAPTER_WORDS, WORDS, split
from lightning_sft.errors import UserError


def typed(key: str) -> str:
    """Return a setting's option as people type it, in short where there is a short word.

    >>> typed("model.optimizer.lr"), typed("model.adapter.lora_alpha"), typed("data.seed")
    ('--lr', '--adapter.alpha', '--data.seed')
    """
    short = {**WORDS, "model": "model.model_name_or_path"}
    word = next((word for word, long in short.items() if long == key), None)
    above = next((word for word, long in WORDS.items() if key.startswith(f"{long}.")), None)
    if word is not None or above is None:
        return f"--{word or key}"
    below = key.removeprefix(f"{WORDS[above]}.")
    if above == "adapter":
        below = next((short for short, long in ADAPTER_WORDS.items() if long == below and short != "rank"), below)
    return f"--{above}.{below}"


def in_full(key: str) -> str:
    """Return a setting's option as people type it, with its whole key behind it where that is another.

    >>> in_full("model.optimizer.lr"), in_full("data.seed")
    ('--lr (in full --model.optimizer.lr)', '--data.seed')
    """
    option = typed(key)
    return option if option == f"--{key}" else f"{option} (in full --{key})"


def require_two_dashes(verb: str, arguments: Sequence[str], *, takes_settings: bool) -> None:
    """Raise if a word that stands by itself is an option with one dash, such as ``-lr``.

    Args:
        verb: of the command line.
        arguments: after it.
        takes_settings: whether the verb takes settings of ``fit``; the options of others are not listed.

    Raises:
        UserError: names the option that was probably meant.
    """
    for option, values, _ in split(arguments):
        for word in values[1 if option else 0 :]:
            name = word.removeprefix("-").partition("=")[0]
            if word.startswith("-") and name[:1].isalpha() and not Path(word).exists():
                meant = _option_named(verb, name) if takes_settings else name
                said = "." if meant is None else f"; did you mean --{meant}?"
                raise UserError(f"{word!r} begins with one dash, and options begin with two{said}")


def _option_named(verb: str, name: str) -> str | None:
    """Return the option that was meant by a word without its dashes: the verb's own first."""
    known = [*listing().verbs.get(verb, {}), *WORDS, "model", "output", "report", "config"]
    settings = listing().settings
    if name in settings or name.partition(".")[0] in known:
        return name
    return nearest(name, known) or nearest_setting(name, settings)
