"""What a chat template writes behind the last text of a conversation, read off short conversations of one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.template import Tools
from lightning_sft.data.encoding.trace import Tracer, key_of, last_of, shape_of
from lightning_sft.data.types import BadRowError, Message

ASKED: list[Message] = [{"role": "user", "content": "xx"}]
"""A question and nothing else."""
MOST_TAILS = 4096
"""Tails that are kept."""
MOST_MESSAGES = 6
"""Messages behind the last user's that tell how a turn is closed."""


class Tails:
    """Renders ends of conversations, each once.

    Args:
        tracer: renders and traces.
    """

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self._kept: dict[str, str | None] = {}

    def forms(self, messages: Sequence[Message], tools: Tools, prompt: bool) -> Iterator[str]:
        """Yield what the template writes behind the last of ``messages``: in a short conversation, then in this one."""
        short = self.of(shape(messages), tools, prompt)
        if short is not None:
            yield short
        try:
            whole = self.render(messages, tools, prompt)
        except BadRowError:
            return
        if whole != short:
            yield whole

    def of(self, messages: Sequence[Message], tools: Tools, prompt: bool, before: bool = False) -> str | None:
        """Return the same for messages that many rows share, or what stands ``before`` their first text.

        None where the template refuses them.
        """
        key = key_of(messages, bool(tools), prompt, before)
        if key not in self._kept:
            if len(self._kept) >= MOST_TAILS:
                self._kept.clear()
            try:
                self._kept[key] = self.render(messages, tools, prompt, before)
            except BadRowError:
                self._kept[key] = None
        return self._kept[key]

    def render(self, messages: Sequence[Message], tools: Tools, prompt: bool, before: bool = False) -> str:
        """Return the same of just these messages.

        Raises:
            BadRowError: the template refuses them, or leaves all of them out.
        """
        trace = self.tracer.trace(messages, tools, prompt)
        if not trace.extents:
            raise BadRowError("the chat template leaves out every message", Code.LEFT_OUT_TEXT)
        if before:
            return trace.text[: trace.extents[0].start]
        return trace.text[max(trace.end(trace.extents[-1].piece.message), trace.extents[-1].end) :]


def shape(messages: Sequence[Message]) -> list[Message]:
    """Return a short conversation of the same shape: what a template may look at, without what is said."""
    last_user = last_of("user", messages)
    system = [message for message in messages[:1] if message["role"] == "system"]
    turn = list(messages[max(last_user, len(system)) :])
    earlier: list[Message] = []
    if last_user > len(system):
        earlier = [{"role": "user", "content": "xx"}, {"role": "assistant", "content": "xx"}]
    if len(turn) > MOST_MESSAGES + 2:
        kept = turn[-MOST_MESSAGES:]
        while kept and kept[0]["role"] == "tool":
            kept = turn[-len(kept) - 1 :]
        turn = turn[: last_user >= 0] + kept
    return [_shaped(message) for message in (*system, *earlier, *turn)]


def _shaped(message: Message) -> Message:
    shaped = {key: "x" * len(value) if key.endswith("id") else shape_of(value) for key, value in message.items()}
    if message.get("tool_calls"):
        shaped["tool_calls"] = [_shaped_call(call) for call in message["tool_calls"][-2:]]
    return {**shaped, "role": message["role"], "content": _shaped_content(message["content"])}


def _shaped_content(content: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return "xx" if content.strip() else ""
    return [{**part, "text": "xx"} for part in content[-1:]]


def _shaped_call(call: dict[str, object]) -> dict[str, object]:
    function = call["function"]
    assert isinstance(function, dict)
    shaped = {"name": "xx"}
    if "arguments" in function:
        arguments = function["arguments"]
        shaped["arguments"] = '{"k": "xx"}' if isinstance(arguments, str) else shape_of(arguments)
    identity = {"id": "x" * len(str(call["id"]))} if call.get("id") else {}
    return {**identity, "type": "function", "function": shaped}
