"""What two models must agree on before their scores can be compared: their order, their tokens, the chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft.errors import UserError
from lightning_sft.models.finished import FoundModel
from lightning_sft.models.positions import row_limit

_NAMED = 3  # tokens in a message


def check_order(before: FoundModel, after: FoundModel) -> None:
    """Raise if the two models stand the wrong way round, as far as they tell.

    Raises:
        UserError: the first was made from the second, or is a later checkpoint of the same run.
    """
    if before.base is not None and _same_place(before.base, after.name):
        raise UserError(
            f"--before is {before.name!r}, which was made from {after.name!r}, the model after. Swap --before and "
            "--after."
        )
    if _one_run(before, after):
        first, second = _steps(before), _steps(after)
        if first is not None and second is not None and first > second:
            raise UserError(
                f"--before is {before.name!r} at step {first}, which is newer than {after.name!r} at step {second} of "
                "the same run. Swap --before and --after."
            )


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(other).exists() and Path(one).samefile(other))


def _one_run(before: FoundModel, after: FoundModel) -> bool:
    """Return whether two models are checkpoints of one run: of like settings, or in one folder of transformers'."""
    settings = [model.content.get("hyper_parameters") for model in (before, after)]
    if all(settings):
        return settings[0] == settings[1]
    return _run_folder(before.name) == _run_folder(after.name)


def _run_folder(name: str) -> Path:
    """Return the folder of a run of transformers' Trainer, which keeps its checkpoints in ``checkpoint-N`` there."""
    path = Path(name).expanduser().absolute()
    return path.parent if re.fullmatch(r"checkpoint-\d+", path.name) else path


def _steps(model: FoundModel) -> int | None:
    """Return the optimizer steps of a checkpoint of ours, or of one that transformers' Trainer wrote."""
    if model.step is not None:
        return model.step
    try:
        state = json.loads((Path(model.name).expanduser() / "trainer_state.json").read_text(encoding="utf-8"))
        return int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_vocabularies(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase) -> str:
    """Return a note on tokens that only one of two tokenizers knows, empty if both know the same.

    Raises:
        UserError: a token has different ids in the two, so that one model would read other words than the other.
    """
    first, second = before.get_vocab(), after.get_vocab()
    differ = sorted(token for token in first.keys() & second.keys() if first[token] != second[token])
    by_id = {i: token for token, i in first.items()}
    differ += sorted(t for t, i in second.items() if t not in first and by_id.get(i, t) != t)
    if differ:
        shown = ", ".join(f"{t!r} ({first.get(t, 'none')} and {second.get(t, 'none')})" for t in differ[:_NAMED])
        raise UserError(
            f"The two models have different vocabularies: {len(differ)} of {len(second)} tokens differ in their ids, "
            f"such as {shown}. Their scores cannot be compared token by token. Leave --before out to read one model."
        )
    notes = []
    for where, only in (("before", first.keys() - second.keys()), ("after", second.keys() - first.keys())):
        if only:
            some = ", ".join(map(repr, sorted(only)[:_NAMED]))
            notes.append(f"{len(only)} tokens are known to the model {where} alone, such as {some}.")
    return " ".join(notes)


def check_ids(ids: Collection[int], size: int, whose: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise if rows hold tokens that a model has no embedding for.

    Args:
        ids: of the rows, each once.
        size: rows of the model's embeddings.
        whose: the model, for the message.
        tokenizer: that made the ids.

    Raises:
        UserError: names the tokens.
    """
    unknown = sorted(i for i in ids if i >= size)
    if unknown:
        names = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in unknown[:_NAMED])
        raise UserError(
            f"The rows hold tokens that {whose} does not know: {names} (ids from {unknown[0]} on; it has {size}). They "
            "were added after it was made. Leave --before out, or give --chat_template a template without them."
        )


def check_positions(model: PreTrainedModel, longest: int, name: str, say: Callable[[str], Any]) -> None:
    """Raise if a model fails on the longest row, and say if it was trained on shorter ones.

    Raises:
        UserError: names both lengths.
    """
    limit = row_limit(model, longest)
    if limit is None:
        return
    message = (
        f"The longest row has {longest} tokens, but {name!r} has {limit.tokens} positions. Set --data.max_length "
        f"{limit.tokens} or less, and say by --data.truncation whether longer rows are cut or dropped."
    )
    if limit.is_hard:
        raise UserError(message)
    say(message)


@dataclass(frozen=True)
class ChosenTemplate:
    """The chat template that both models are read with.

    Attributes:
        template: Jinja source, or several by name; None without one.
        whose: where it is from, for people.
    """

    template: Any
    whose: str


def choose_template(
    before: PreTrainedTokenizerBase | None, after: PreTrainedTokenizerBase, asked: str | None
) -> ChosenTemplate:
    """Choose the chat template for both models.

    Args:
        before: tokenizer of the first model; None without one.
        after: tokenizer of the second.
        asked: ``"before"``, ``"after"``, or a template or its file; None takes what is clear by itself.

    Raises:
        UserError: the two have different templates, and nothing was asked for.
    """
    own = after.chat_template
    if asked not in (None, "before", "after"):
        assert asked is not None
        path = Path(asked).expanduser()
        if "{" not in asked and not path.is_file():
            raise UserError(
                f"--chat_template is {asked!r}. Allowed: before, after, a Jinja template, or a file that holds one."
            )
        named = "{" not in asked
        text = path.read_text(encoding="utf-8") if named else asked
        return ChosenTemplate(text, f"the one given ({asked})" if named else "the one given")
    if before is None:
        if asked == "before":
            raise UserError("--chat_template is before, but there is no --before. Give one, or leave it out.")
        return ChosenTemplate(own, "the model's own" if own else "none")
    other = before.chat_template
    same = _default(own) == _default(other)
    if asked is None and own and other and not same:
        raise UserError(
            "The two models have different chat templates, and which one the rows are read with decides which tokens "
            "are looked at. Say it: --chat_template after (what the model was tuned with, most likely), before, or a "
            "template's file."
        )
    if asked == "before" or (asked is None and not own):
        return ChosenTemplate(other, "that of the model before" if other else "none")
    if own and other and same:
        return ChosenTemplate(own, "the same in both models")
    return ChosenTemplate(own, "that of the model after" if own else "none")


def _default(template: Any) -> Any:
    """Return the template that rows without tools are rendered with; there may be several by name."""
    return template.get("default") if isinstance(template, dict) else template
