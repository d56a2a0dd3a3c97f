"""The form in which a chat template takes messages: arguments as an object or as text, content as text or as parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.template import Tools
from lightning_sft.data.encoding.trace import Trace, Tracer
from lightning_sft.data.types import BadRowError, Message


@dataclass(frozen=True)
class Form:
    """How messages are given to a template.

    Args:
        arguments_as_text: whether the arguments of calls are JSON text, and not objects.
        content_as_parts: whether content is a list of parts, and not text.
    """

    arguments_as_text: bool
    content_as_parts: bool

    def shape(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages in this form."""
        return [self._message(message) for message in messages]

    def _message(self, message: Message) -> Message:
        given = dict(message)
        if self.content_as_parts:
            given["content"] = [{"type": "text", "text": message["content"]}]
        if self.arguments_as_text and message.get("tool_calls"):
            given["tool_calls"] = [_with_text(call) for call in message["tool_calls"]]
        return given


FORMS = tuple(Form(arguments, parts) for parts in (False, True) for arguments in (False, True))
OTHER_FORM = (Code.TEMPLATE_REFUSES, Code.REWRITTEN, Code.LEFT_OUT_CALL, Code.LEFT_OUT_TEXT)
"""Refusals for which another form is tried."""


class FormedTracer:
    """Traces conversations in the first form that their chat template takes.

    Args:
        tracer: renders and traces.
    """

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self._first = {False: FORMS[0], True: FORMS[0]}
        """Whether there are calls -> the form that was taken last."""

    def render(self, messages: Sequence[Message], tools: Tools, prompt: bool) -> str:
        """Return a conversation's text in the form that was taken last."""
        form = self._first[any(message.get("tool_calls") for message in messages)]
        return self.tracer.template.render(form.shape(messages), tools, prompt)

    def trace(
        self, messages: Sequence[Message], tools: Tools, prompt: bool = False, marked: bool = False
    ) -> tuple[Trace, list[Message]]:
        """Return a conversation's trace, with all of it in its place, and the messages in the form that was taken.

        Raises:
            BadRowError: no form is taken; the error is that of the first one.
        """
        calls = any(message.get("tool_calls") for message in messages)
        first = self._first[calls]
        refusal: BadRowError | None = None
        for form in dict.fromkeys((first, *FORMS)):
            if form.arguments_as_text and not calls:
                continue
            given = form.shape(messages)
            try:
                trace = self.tracer.trace(given, tools, prompt, marked)
                _check_arguments(trace, given)
                self.tracer.check(trace, given, tools)
            except BadRowError as e:
                if e.code not in OTHER_FORM:
                    raise
                refusal = e if refusal is None or form == FORMS[0] else refusal
                continue
            self._first[calls] = form
            return trace, given
        assert refusal is not None
        raise refusal


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call["function"].get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": text}}


def _check_arguments(trace: Trace, messages: Sequence[Message]) -> None:
    """Raise where a template takes arguments for what they are not: prints an object, or quotes text once more."""
    for i, message in enumerate(messages):
        for call in message.get("tool_calls") or ():
            arguments = call["function"].get("arguments")
            printed = isinstance(arguments, dict) and arguments and repr(arguments) in trace.text
            if printed or (isinstance(arguments, str) and arguments not in trace.text):
                raise BadRowError(
                    f"the chat template writes the arguments of a call of message {i} in another form than JSON. Give "
                    "the tokenizer a template that writes them with `tojson`.",
                    Code.LEFT_OUT_CALL,
                )
