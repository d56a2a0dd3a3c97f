"""The messages of one conversation together: their order, and what to do with one that breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lightning_sft.data.codes import Code
from lightning_sft.data.reading.fields import as_list
from lightning_sft.data.reading.messages import read_message
from lightning_sft.data.types import SPANS, BadRowError, Flag, Message

OnUnanswered = Literal["error", "drop_tail"]
OnRepeatedRole = Literal["error", "join"]

FOLLOWS = {
    "system": ("start",),
    "user": ("start", "system", "assistant"),
    "assistant": ("start", "system", "user", "tool"),
    "tool": ("assistant", "tool"),
}
"""Role -> the roles it may stand after."""
TAIL = "messages behind the last answer"


@dataclass(frozen=True)
class Rules:
    """What to do with conversations that many public sets have.

    Args:
        on_unanswered: a conversation that does not end with the assistant's words is a bad row (``error``), or loses
            what stands behind the last of them (``drop_tail``).
        on_repeated_role: two messages of one role behind each other make a bad row (``error``), or one message with a
            blank line between (``join``). Results of tools may always follow each other.
    """

    on_unanswered: OnUnanswered = "error"
    on_repeated_role: OnRepeatedRole = "error"


STRICT = Rules()


@dataclass
class Conversation:
    """Messages, for each its train flag, and the names of what was not read of them."""

    messages: list[Message] = field(default_factory=list)
    flags: list[Flag] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __add__(self, other: Conversation) -> Conversation:
        return Conversation(
            self.messages + other.messages, self.flags + other.flags, [*dict.fromkeys(self.unused + other.unused)]
        )

    def checked(self, rules: Rules, answers: bool) -> Conversation:
        """Return the conversation in order.

        Args:
            rules: what to do with one that is not.
            answers: whether it must end with the assistant's words.

        Raises:
            BadRowError: it is not in order, and the rules do not put it in order.
        """
        kept = [i for i, m in enumerate(self.messages) if m["role"] != "system" or m["content"]]
        result = Conversation([self.messages[i] for i in kept], [self.flags[i] for i in kept], list(self.unused))
        if rules.on_repeated_role == "join":
            result = result._joined()
        _check_order(result.messages)
        roles = [message["role"] for message in result.messages]
        if answers and roles[-1:] != ["assistant"]:
            last = len(roles) - 1 - roles[::-1].index("assistant") if "assistant" in roles else -1
            if last < 0:
                raise BadRowError("the conversation has no message from the assistant", Code.UNANSWERED)
            if rules.on_unanswered == "error":
                raise BadRowError(
                    f"the last message is from {roles[-1]}, it must be the assistant's. Set data.on_unanswered: "
                    "drop_tail to leave out what stands behind the last answer.",
                    Code.UNANSWERED,
                )
            result = Conversation(result.messages[: last + 1], result.flags[: last + 1], [*result.unused, TAIL])
        return result

    def _joined(self) -> Conversation:
        """Return the conversation with neighbouring messages of one role made one, those of tools left alone."""
        joined = Conversation(unused=self.unused)
        for i, (message, flag) in enumerate(zip(self.messages, self.flags, strict=True)):
            if not joined.messages or message["role"] == "tool" or joined.messages[-1]["role"] != message["role"]:
                joined.messages.append(message)
                joined.flags.append(flag)
                continue
            if joined.flags[-1] != flag or SPANS in message or SPANS in joined.messages[-1]:
                raise BadRowError(
                    f"message {i} has the role of the one before it, and their flags or weights differ: they cannot be "
                    "joined. Give both the same.",
                    Code.REPEATED_ROLE,
                )
            joined.messages[-1] = _join(joined.messages[-1], message)
        return joined


def read_conversation(value: object, column: str) -> Conversation:
    """Return the messages of a column as they stand there, in whatever order.

    Raises:
        BadRowError: it is no list of messages, or one of them breaks a rule.
    """
    items = as_list(value, column)
    if not items:
        raise BadRowError(f"{column} is empty", Code.TEXT)
    result = Conversation()
    for i, item in enumerate(items):
        message, flag, unread = read_message(item, i)
        last = result.messages[-1] if result.messages else {}
        if _only_calls(message) and _only_calls(last) and result.flags[-1] == flag:
            # calls made at once, each in a message of its own
            result.messages[-1] = {**last, "tool_calls": [*last["tool_calls"], *message["tool_calls"]]}
            continue
        result.messages.append(message)
        result.flags.append(flag)
        result.unused += [f"messages.{key}" for key in unread if f"messages.{key}" not in result.unused]
    return result


def _only_calls(message: Message) -> bool:
    return bool(message.get("tool_calls")) and not message["content"] and "reasoning_content" not in message


def _join(first: Message, second: Message) -> Message:
    joined = {**first, **second}
    for key in ("content", "reasoning_content"):
        texts = [message[key] for message in (first, second) if message.get(key)]
        if texts or key in joined:
            joined[key] = "\n\n".join(texts)
    if calls := [*first.get("tool_calls", ()), *second.get("tool_calls", ())]:
        joined["tool_calls"] = calls
    return joined


def _check_order(messages: Sequence[Message]) -> None:
    previous = "start"
    for i, message in enumerate(messages):
        role = message["role"]
        if role == previous and role in ("user", "assistant", "system"):
            raise BadRowError(
                f"roles out of order: messages {i - 1} and {i} are both from {role}. Set data.on_repeated_role: join "
                "to make them one.",
                Code.REPEATED_ROLE,
            )
        if previous not in FOLLOWS[role]:
            after = "first" if previous == "start" else f"after {previous}"
            raise BadRowError(f"roles out of order: message {i} is from {role} and stands {after}", Code.ROLES)
        previous = role
