"""Rows of the usual formats -> `Example`, with every rule that a row must keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning_sft.data.reading.fields import as_list, as_text, kind, optional
from lightning_sft.data.types import BadRowError, Example, Message

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

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
FOLLOWS = {
    "system": ("start",),
    "user": ("start", "system", "assistant"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Role -> the roles it may stand after."""

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


def to_example(row: Mapping[str, Any], form: str, where: str = "", answers: bool = True) -> Example:
    """Turn one row into an example.

    Args:
        row: column name to value, under the names of `REQUIRED`.
        form: a key of `REQUIRED`.
        where: file and line.
        answers: whether a row must have an answer; without, it may end with the user's words.

    Raises:
        BadRowError: the row breaks a rule.
    """
    missing = [column for column in needed(form, answers) if column not in row]
    if missing:
        other = detect(row, answers)
        hint = f" (it looks like format {other!r}: one file holds one format)" if other else ""
        raise BadRowError(
            f"missing column {', '.join(missing)}; the row has {', '.join(map(str, row)) or 'none'}{hint}"
        )
    if form == "text":
        return Example(messages=(), plain=("", as_text(row["text"], "text")), where=where)
    tools = _tools(row.get("tools"))
    if form == "messages":
        messages, flags = _conversation(row["messages"], "messages", answers)
        return _chat(messages, flags, 0, tools, where)
    if form == "sharegpt":
        messages, flags = _conversation(
            [_sharegpt(m) for m in as_list(row["conversations"], "conversations")], form, answers
        )
        return _chat(messages, flags, 0, tools, where, optional(row, "system"))
    if form == "alpaca":
        return _alpaca(row, where, answers)
    return _prompt_completion(row, tools, where, answers)


def _prompt_completion(
    row: Mapping[str, Any], tools: tuple[dict[str, Any], ...] | None, where: str, answers: bool
) -> Example:
    prompt, completion = row["prompt"], row.get("completion")
    if completion is None and not answers:
        if isinstance(prompt, str):
            return _pair(as_text(prompt, "prompt"), None, where, optional(row, "system"))
        messages, flags = _conversation(prompt, "prompt", answers)
        return _chat(messages, flags, 0, tools, where)
    if isinstance(prompt, str) and isinstance(completion, str):
        return _pair(as_text(prompt, "prompt"), as_text(completion, "completion"), where, optional(row, "system"))
    if isinstance(prompt, list) and isinstance(completion, list):
        first, first_flags = _messages(prompt, "prompt")
        last, last_flags = _messages(completion, "completion")
        _check_order([*first, *last], answers=True)
        return _chat([*first, *last], [*first_flags, *last_flags], len(first), tools, where)
    kinds = f"{kind(prompt)} and {kind(completion)}"
    raise BadRowError(f"prompt and completion must both be text or both be lists of messages, got {kinds}")


def _chat(
    messages: list[Message],
    flags: list[bool | None],
    prompt_messages: int,
    tools: tuple[dict[str, Any], ...] | None,
    where: str,
    system: str | None = None,
) -> Example:
    return Example(tuple(messages), tuple(flags), prompt_messages, tools, where=where).with_system(system)


def _pair(
    prompt: str, completion: str | None, where: str, system: str | None, plain_prompt: str | None = None
) -> Example:
    messages = [{"role": "user", "content": prompt}]
    if completion is not None:
        messages.append({"role": "assistant", "content": completion})
    plain = (prompt if plain_prompt is None else plain_prompt, completion or "")
    return Example(tuple(messages), (None,) * len(messages), 1, plain=plain, where=where).with_system(system)


def _alpaca(row: Mapping[str, Any], where: str, answers: bool) -> Example:
    instruction = as_text(row["instruction"], "instruction")
    output = None if row.get("output") is None and not answers else as_text(row["output"], "output")
    extra = optional(row, "input")
    plain = (
        ALPACA_INPUT.format(instruction=instruction, input=extra) if extra else ALPACA.format(instruction=instruction)
    )
    prompt = f"{instruction}\n{extra}" if extra else instruction
    return _pair(prompt, output, where, optional(row, "system"), plain)


def _sharegpt(message: object) -> Message:
    if not isinstance(message, Mapping):
        raise BadRowError(f"a message must be an object with from and value, got {type(message).__name__}")
    if "role" in message and "from" not in message:
        return dict(message)
    role = message.get("from")
    if role not in SHAREGPT_ROLES:
        raise BadRowError(f"unknown role {role!r}; known are {', '.join(SHAREGPT_ROLES)}")
    rest = {k: v for k, v in message.items() if k not in ("from", "value")}
    return {"role": SHAREGPT_ROLES[role], "content": message.get("value"), **rest}


def _conversation(value: object, column: str, answers: bool) -> tuple[list[Message], list[bool | None]]:
    """Return the checked messages of a whole conversation with their train flags."""
    messages, flags = _messages(value, column)
    _check_order(messages, answers)
    return messages, flags


def _messages(value: object, column: str) -> tuple[list[Message], list[bool | None]]:
    items = as_list(value, column)
    if not items:
        raise BadRowError(f"{column} is empty")
    messages, flags = zip(*[_message(m, i) for i, m in enumerate(items)], strict=True)
    return list(messages), list(flags)


def _message(message: object, index: int) -> tuple[Message, bool | None]:
    at = f"message {index}"
    if not isinstance(message, Mapping):
        raise BadRowError(f"{at} must be an object with role and content, got {type(message).__name__}")
    clean = {k: v for k, v in message.items() if v is not None}
    if "role" not in clean:
        raise BadRowError(f"{at} has no role; it has {', '.join(map(str, message)) or 'nothing'}")
    role = "system" if clean["role"] == "developer" else clean["role"]
    if role not in FOLLOWS:
        raise BadRowError(f"{at} has the unknown role {role!r}; known are {', '.join(FOLLOWS)}, developer")
    flag = _flag(clean, at)
    if flag and role != "assistant":
        raise BadRowError(f"{at} is from {role} and flagged for training; only assistant messages can be")
    calls = clean.get("tool_calls")
    content = clean.get("content")
    if role == "assistant" and calls and not content:
        text = ""
    else:
        text = as_text(_join_parts(content, at), at)
    kept = {k: v for k, v in clean.items() if k not in ("train", "weight", "role", "content", "tool_calls")}
    result: Message = {"role": role, "content": text, **kept}
    if calls:
        result["tool_calls"] = [_call(call, at) for call in as_list(calls, "tool_calls")]
    return result, flag


def _flag(message: Mapping[str, Any], at: str) -> bool | None:
    """Return the message's own train flag: ``train: true`` or OpenAI's ``weight: 0`` or ``1``."""
    if "train" in message:
        if not isinstance(message["train"], bool):
            raise BadRowError(f"{at}: train must be true or false, got {message['train']!r}")
        return message["train"]
    if "weight" in message:
        if message["weight"] not in (0, 1):
            raise BadRowError(f"{at}: weight must be 0 or 1, got {message['weight']!r}")
        return bool(message["weight"])
    return None


def _call(call: object, at: str) -> dict[str, Any]:
    """Return one tool call with its arguments as an object, the form that chat templates read."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRowError(f"{at}: a tool call needs function.name and function.arguments")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as e:
            raise BadRowError(f"{at}: the tool call's arguments are not valid JSON: {e}") from e
    if isinstance(arguments, Mapping):
        arguments = {k: v for k, v in arguments.items() if v is not None}
    return {**call, "type": "function", "function": {**function, "arguments": arguments}}


def _tools(value: object) -> tuple[dict[str, Any], ...] | None:
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except ValueError as e:
            raise BadRowError(f"tools is not valid JSON: {e}") from e
    if not value:
        return None
    tools = as_list(value, "tools")
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadRowError("tools must be a list of JSON schemas")
    return tuple(tools)


def _check_order(messages: Sequence[Message], answers: bool) -> None:
    previous = "start"
    for i, message in enumerate(messages):
        role = message["role"]
        if previous not in FOLLOWS[role]:
            after = "first" if previous == "start" else f"after {previous}"
            raise BadRowError(f"roles out of order: message {i} is from {role} and stands {after}")
        previous = role
    if answers and previous != "assistant":
        raise BadRowError(f"roles out of order: the last message is from {previous}, it must be the assistant's")


def _join_parts(content: object, at: str) -> object:
    """Join OpenAI's content parts, a list of ``{"type": "text", "text": ...}``, into one string."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            given = part.get("type") if isinstance(part, Mapping) else kind(part)
            raise BadRowError(f"{at} has content of type {given!r}; only text can be trained on")
    return "".join(part["text"] for part in content)
