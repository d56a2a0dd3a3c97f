"""Rows of the usual formats -> `Example`, with every rule that a row must keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Literal

from lightning_sft.data.codes import Code
from lightning_sft.data.reading.calls import read_tools
from lightning_sft.data.reading.conversation import STRICT, Conversation, Rules, read_conversation
from lightning_sft.data.reading.fields import as_list, as_text, kind, optional
from lightning_sft.data.reading.flags import FLAG_KEYS, row_weight
from lightning_sft.data.types import BadRowError, Example

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text"]

REQUIRED = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""Format -> the columns that it cannot do without; the order decides when a row has the columns of several. The first
column alone makes a prompt without an answer."""

OPTIONAL = {
    "messages": ("tools", "functions"),
    "sharegpt": ("system", "tools"),
    "prompt_completion": ("system", "tools"),
    "alpaca": ("input", "system", "history"),
    "text": (),
}
"""Format -> what it reads besides."""
MEDIA = ("images", "videos", "audios", "image", "video", "audio")
KWARGS = "chat_template_kwargs"

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""The prompts of Stanford Alpaca (Taori et al., 2023), used where no chat template is applied."""


def needed(form: str, answers: bool) -> tuple[str, ...]:
    """Return the columns that rows of a format need, with or without answers."""
    return REQUIRED[form] if answers else REQUIRED[form][:1]


def detect(row: Mapping[str, object], answers: bool = True) -> str | None:
    """Return the format whose columns ``row`` has, or None.

    >>> detect({"prompt": "1+1=", "completion": "2", "id": 7})
    'prompt_completion'
    """
    for name in REQUIRED:
        if all(column in row for column in needed(name, answers)):
            return name
    return None


def to_example(
    row: Mapping[str, Any], form: str, where: str = "", answers: bool = True, rules: Rules = STRICT
) -> Example:
    """Turn one row into an example.

    Args:
        row: column name to value, under the names of `REQUIRED`.
        form: a key of `REQUIRED`.
        where: file and line.
        answers: whether a row must have an answer; without, it may end with the user's words.
        rules: what to do with conversations that are not in order.

    Raises:
        BadRowError: the row breaks a rule, or is not to be trained.
    """
    missing = [column for column in needed(form, answers) if column not in row]
    if missing:
        other = detect(row, answers)
        hint = f" (it looks like format {other!r}: one file holds one format)" if other else ""
        raise BadRowError(
            f"missing column {', '.join(missing)}; the row has {', '.join(map(str, row)) or 'none'}{hint}", Code.COLUMNS
        )
    weight = row_weight(row) if answers else 1.0
    if media := next((column for column in MEDIA if row.get(column)), None):
        raise BadRowError(f"the row has {media}; only text can be trained on. Take such rows out.", Code.MEDIA)
    reader = {"alpaca": _alpaca, "text": _text, "prompt_completion": _prompt_completion}.get(form, _conversation)
    example = reader(row, form, answers, rules)
    read = {*REQUIRED[form], *OPTIONAL[form], *FLAG_KEYS, *MEDIA, "label", KWARGS}
    unused = [str(column) for column in row if column not in read]
    return replace(
        example,
        where=where,
        weight=weight,
        unused=intern_names((*unused, *example.unused)),
        template_kwargs=_template_kwargs(row),
    )


@cache
def intern_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return one tuple for all equal ones: the rows of a file mostly have the same columns."""
    return names


def _conversation(row: Mapping[str, Any], form: str, answers: bool, rules: Rules) -> Example:
    column = REQUIRED[form][0]
    conversation = read_conversation(row[column], column).checked(rules, answers)
    tools = read_tools(row.get("tools") or row.get("functions") if form == "messages" else row.get("tools"))
    return _chat(conversation, 0, tools, optional(row, "system") if form == "sharegpt" else None)


def _text(row: Mapping[str, Any], form: str, answers: bool, rules: Rules) -> Example:
    return Example(messages=(), plain=("", as_text(row["text"], "text")))


def _prompt_completion(row: Mapping[str, Any], form: str, answers: bool, rules: Rules) -> Example:
    prompt, completion, system = row["prompt"], row.get("completion"), optional(row, "system")
    tools = read_tools(row.get("tools"))
    if completion is None and not answers:
        if isinstance(prompt, str):
            return _pair(as_text(prompt, "prompt"), None, system)
        return _chat(read_conversation(prompt, "prompt").checked(rules, answers), 0, tools, system)
    if isinstance(prompt, str) and isinstance(completion, str):
        return _pair(as_text(prompt, "prompt"), as_text(completion, "completion"), system)
    if isinstance(prompt, list) and isinstance(completion, list):
        first = read_conversation(prompt, "prompt").checked(rules, answers=False)
        last = read_conversation(completion, "completion")
        return _chat((first + last).checked(rules, answers=True), len(first.messages), tools, system)
    kinds = f"{kind(prompt)} and {kind(completion)}"
    raise BadRowError(
        f"prompt and completion must both be text or both be lists of messages, got {kinds}", Code.COLUMNS
    )


def _chat(
    conversation: Conversation, prompt_messages: int, tools: tuple[dict[str, Any], ...] | None, system: str | None
) -> Example:
    return Example(
        tuple(conversation.messages),
        tuple(conversation.flags),
        prompt_messages,
        tools,
        unused=tuple(conversation.unused),
    ).with_system(system)


def _pair(prompt: str, completion: str | None, system: str | None, plain_prompt: str | None = None) -> Example:
    messages = [{"role": "user", "content": prompt}]
    if completion is not None:
        messages.append({"role": "assistant", "content": completion})
    plain = (prompt if plain_prompt is None else plain_prompt, completion or "")
    return Example(tuple(messages), (None,) * len(messages), 1, plain=plain).with_system(system)


def _alpaca(row: Mapping[str, Any], form: str, answers: bool, rules: Rules) -> Example:
    instruction = as_text(row["instruction"], "instruction")
    output = None if row.get("output") is None and not answers else as_text(row["output"], "output")
    extra = optional(row, "input")
    last = (
        ALPACA_INPUT.format(instruction=instruction, input=extra) if extra else ALPACA.format(instruction=instruction)
    )
    earlier = _history(row.get("history"))
    plain = "".join(f"{ALPACA.format(instruction=asked)}{answer}\n\n" for asked, answer in earlier) + last
    pair = _pair(f"{instruction}\n{extra}" if extra else instruction, output, None, plain)
    turns = [
        {"role": role, "content": text}
        for turn in earlier
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    return replace(
        pair,
        messages=(*turns, *pair.messages),
        flags=(None,) * (len(turns) + len(pair.flags)),
        prompt_messages=len(turns) + 1,
    ).with_system(optional(row, "system"))


def _history(value: object) -> list[tuple[str, str]]:
    """Return the earlier turns of an Alpaca row: pairs of instruction and answer."""
    turns = []
    for i, turn in enumerate(as_list(value or [], "history")):
        if not isinstance(turn, list) or len(turn) != 2:
            raise BadRowError(f"history {i} must be a pair of instruction and answer, got {turn!r}", Code.COLUMNS)
        turns.append((as_text(turn[0], f"history {i}"), as_text(turn[1], f"history {i}")))
    return turns


def _template_kwargs(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the row's own variables for the chat template."""
    value = row.get(KWARGS)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as e:
            raise BadRowError(f"{KWARGS} is not valid JSON: {e}", Code.COLUMNS) from e
    if not value:
        return None
    if not isinstance(value, Mapping):
        raise BadRowError(f"{KWARGS} must be an object, got {kind(value)}", Code.COLUMNS)
    return {name: item for name, item in value.items() if item is not None}
