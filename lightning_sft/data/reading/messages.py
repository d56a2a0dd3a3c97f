"""One message in the forms in which public data has it -> the one that chat templates read, and its train flag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_sft.data.codes import Code
from lightning_sft.data.reading.calls import read_call, read_call_text
from lightning_sft.data.reading.fields import as_list, as_text, kind
from lightning_sft.data.reading.flags import FLAG_KEYS, message_flag, message_spans
from lightning_sft.data.types import SPANS, BadRowError, Flag, Message

CALLS = "function_call"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
    CALLS: CALLS,
    "tool_call": CALLS,
}
"""Role in lower case -> role; the text of a `CALLS` message is JSON of the assistant's calls."""
REASONING = ("reasoning_content", "reasoning", "thinking")
LABELS = ("name", "tool_call_id")
READ_KEYS = {"role", "from", "content", "value", "tool_calls", "function_call", *FLAG_KEYS, *REASONING, *LABELS, SPANS}


def read_message(given: object, index: int) -> tuple[Message, Flag, list[str]]:
    """Return a message, its train flag, and those of its keys that are not read.

    Keys that are not known are handed on, for the chat template may read them.

    Args:
        given: the message: ``role`` and ``content``, or ``from`` and ``value``.
        index: its index in the conversation.

    Raises:
        BadRowError: it breaks a rule.
    """
    at = f"message {index}"
    if not isinstance(given, Mapping):
        names = "role and content (or from and value)"
        raise BadRowError(f"{at} must be an object with {names}, got {kind(given)}", Code.COLUMNS)
    clean = {k: v for k, v in given.items() if v is not None}
    name = clean.get("role", clean.get("from"))
    if name is None:
        raise BadRowError(f"{at} has no role; it has {', '.join(map(str, given)) or 'nothing'}", Code.ROLES)
    role = ROLES.get(str(name).lower())
    if role is None:
        raise BadRowError(f"{at} has the unknown role {name!r}; known are {', '.join(ROLES)}", Code.ROLES)
    flag = message_flag(clean, at)
    content = clean.get("content", clean.get("value"))
    calls = [read_call(call, at) for call in as_list(clean.get("tool_calls") or [], "tool_calls")]
    if role == CALLS:
        role, calls, content = "assistant", read_call_text(content, at), None
    elif clean.get("function_call"):
        calls.append(read_call(clean["function_call"], at))
    thoughts: list[str] = []
    if role == "assistant" and isinstance(content, list):
        content, thoughts, more = _parts(content, at)
        calls += more
    if flag and role != "assistant":
        raise BadRowError(
            f"{at} is from {role} and flagged for training; only assistant messages can be. Take the flag out; to "
            "train prompts too, set data.train_on: all, and data.loss_weights.prompt to their weight",
            Code.WEIGHT,
        )
    if content is None and not calls and not {"content", "value"} & given.keys():
        raise BadRowError(f"{at} has no content; it has {', '.join(map(str, given))}", Code.TEXT)
    message: Message = {"role": role, "content": _content(content, role, bool(calls), at)}
    if calls:
        message["tool_calls"] = calls
    thoughts += [as_text(clean[key], f"{key} of {at}") for key in REASONING if str(clean.get(key, "")).strip()]
    if thoughts and role == "assistant":
        message["reasoning_content"] = thoughts[0]
    message |= {key: str(clean[key]) for key in LABELS if key in clean}
    if role == "assistant" and SPANS in clean:
        message[SPANS] = message_spans(clean[SPANS], message["content"], at)
    unread = [key for key in clean if key not in READ_KEYS]
    return {**message, **{key: clean[key] for key in unread}}, flag, unread


def _parts(content: list[Any], at: str) -> tuple[list[Any], list[str], list[dict[str, Any]]]:
    """Return an assistant's texts, reasoning and calls, where one list of parts holds them as in LLaMA-Factory."""
    rest: list[Any] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in content:
        sort = part.get("type") if isinstance(part, Mapping) else None
        if sort == "reasoning":
            thoughts.append(as_text(part.get("value", part.get("text")), f"reasoning of {at}"))
        elif sort == "tool_call":
            calls += read_call_text(part.get("value"), at)
        else:
            rest.append(part)
    return rest, ["\n".join(thoughts)] if thoughts else [], calls


def _content(value: object, role: str, calls: bool, at: str) -> str:
    text = _joined(value, at)
    blank = text is None or (isinstance(text, str) and not text.strip())
    if blank and ((role == "assistant" and calls) or role in ("system", "tool")):
        return ""
    return as_text(text, at)


def _joined(content: object, at: str) -> object:
    """Join a list of parts, ``{"type": "text", "text": ...}`` or with ``value``, into one string."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or part.get("type", "text") != "text" or not isinstance(text, str):
            given: Any = part.get("type") if isinstance(part, Mapping) else kind(part)
            raise BadRowError(f"{at} has content of type {given!r}; only text can be trained on", Code.MEDIA)
        texts.append(text)
    return "".join(texts)
