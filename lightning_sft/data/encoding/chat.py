"""A conversation and a chat template -> text, and where in it the assistant speaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightning_sft.data.types import BadRowError, Example, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Characters [start, end) of a rendered conversation."""

OPEN, CLOSE = "\ue000", "\ue001"
"""Private-use characters that stand for the generation markers while a template is rendered."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a tokenizer with a chat template.
        kwargs: variables for the template, such as ``enable_thinking``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: dict[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.kwargs = kwargs or {}

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, prompt: bool) -> str:
        """Return the text of ``messages``; with ``prompt``, up to where the assistant's next words begin.

        Raises:
            BadRowError: the template refuses the messages.
        """
        return self._render(None, messages, tools, prompt)

    def _render(
        self, template: str | None, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None, prompt: bool
    ) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) if tools else None,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.kwargs,
            )
        except (TemplateError, TypeError, ValueError) as e:
            raise BadRowError(f"the chat template refuses the conversation: {e}") from e
        assert isinstance(text, str)
        return text

    @cached_property
    def source(self) -> str:
        """The template itself; of several the default one."""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default", "")
        return str(template or "")

    @cached_property
    def has_markers(self) -> bool:
        """Whether the template marks what the assistant generates."""
        return re.search(r"{%[-+]?\s*generation\s*[-+]?%}", self.source) is not None

    @cached_property
    def _marking(self) -> str:
        """The template with each generation marker printing a character of its own.

        Inside an ``if`` so that the white space around the marker is treated as around any block tag.
        """
        text = self.source
        for name, character in (("generation", OPEN), ("endgeneration", CLOSE)):
            block = r"{%\1 if true %}{{ '" + character + r"' }}{% endif \2%}"
            text = re.sub(rf"{{%([-+]?)\s*{name}\s*([-+]?)%}}", block, text)
        return text

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokenizer's special tokens as text, longest first."""
        added = self.tokenizer.added_tokens_decoder.values()
        every = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)} - {""}
        return tuple(sorted(every, key=len, reverse=True))

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.special_tokens)) or "(?!)")

    @cached_property
    def end_of_turn(self) -> str:
        """What the template writes after an answer up to its special end token, that included; "" if there is none."""
        probe = "probe"
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": probe}]
        try:
            text = self.render(messages, None, False)
        except BadRowError:
            return ""  # a template for conversations of one kind, such as with tools
        tail = text.rpartition(probe)[2] if probe in text else ""
        ends = [tail.find(token) + len(token) for token in self.special_tokens if token in tail]
        return tail[: min(ends)] if ends else ""

    @cached_property
    def ends_every_turn(self) -> bool:
        """Whether `end_of_turn` follows every answer, not only the last."""
        one, two = "probe-one", "probe-two"
        messages = [{"role": role, "content": text} for role, text in zip(_ROLES, ("x", one, two, "y"), strict=True)]
        try:
            text = self.render(messages, None, False)
        except BadRowError:
            return False
        return bool(self.end_of_turn) and self.end_of_turn in text.partition(one)[2].partition(two)[0]

    @cached_property
    def _keeps_system(self) -> bool:
        messages = [{"role": role, "content": f"probe-{role}"} for role in ("system", "user", "assistant")]
        return "probe-system" in self.render(messages, None, False)

    def text(self, example: Example) -> str:
        """Return the whole conversation as text.

        Raises:
            BadRowError: a text contains a special token, or the template refuses or loses part of the conversation.
        """
        for i, message in enumerate(example.messages):
            if found := self._special.search(message["content"]):
                raise BadRowError(
                    f"message {i} contains {found.group()!r}, which the tokenizer would read as a special token"
                )
        if example.tools and "tools" not in str(self.tokenizer.chat_template):
            raise BadRowError("the row has tools, and the chat template does not use them")
        text = self.render(example.messages, example.tools, False)
        for i, message in enumerate(example.messages):
            kept = message["content"].strip() in text and (message["role"] != "system" or self._keeps_system)
            if message["role"] in ("system", "user") and not kept:
                raise BadRowError(f"the chat template leaves out or changes message {i}, from {message['role']}")
        return text

    def spans(self, example: Example, chosen: Sequence[int]) -> tuple[str, list[Span]]:
        """Return the rendered conversation and the spans of the ``chosen`` messages, each with its end of turn.

        Raises:
            BadRowError: the template cannot be followed exactly.
        """
        text = self.text(example)
        if self.has_markers and (spans := self._marked(example, chosen, text)) is not None:
            return text, spans
        return text, [self._by_prefix(example, i, text) for i in chosen]

    def _marked(self, example: Example, chosen: Sequence[int], text: str) -> list[Span] | None:
        """Return spans by the template's markers, or None where they cannot be told apart."""
        if OPEN in text or CLOSE in text:
            return None
        marked = self._render(self._marking, example.messages, example.tools, False)
        spans: list[Span] = []
        plain = ""
        for piece in re.split(f"([{OPEN}{CLOSE}])", marked):
            if piece == OPEN:
                spans.append((len(plain), len(plain)))
            elif piece == CLOSE:
                spans[-1] = (spans[-1][0], len(plain))
            else:
                plain += piece
        if plain != text:
            return None
        speakers = [i for i, m in enumerate(example.messages) if m["role"] == "assistant"]
        if set(chosen) == set(speakers):
            return [self._with_end(text, span) for span in spans if span[0] < span[1]]
        if len(spans) != len(speakers) or not set(chosen) <= set(speakers):
            return None
        return [self._with_end(text, span) for i, span in zip(speakers, spans, strict=True) if i in chosen]

    def _with_end(self, text: str, span: Span) -> Span:
        """Stretch or cut a marked span so that it ends with the end of the turn."""
        start, end = span
        inside = text[start:end].rstrip()
        if inside.endswith(self.special_tokens):
            return start, start + len(inside)
        if text.startswith(self.end_of_turn, end):
            return start, end + len(self.end_of_turn)
        if self.ends_every_turn:
            raise BadRowError("the end of a turn would not be trained: the template's markers leave it out")
        return span

    def _by_prefix(self, example: Example, index: int, text: str) -> Span:
        """Return the span of one message from renderings of the conversation's beginning."""
        message = example.messages[index]
        answers = message["role"] == "assistant"
        before = self.render(example.messages[:index], example.tools, answers) if index else ""
        if not text.startswith(before):
            raise BadRowError(_UNSTABLE.format(index))
        start = len(before)
        if answers and self.ends_every_turn:
            found = text.find(self.end_of_turn, start)
            end = found + len(self.end_of_turn)
            if found < 0:
                raise BadRowError(_UNSTABLE.format(index))
        else:
            after = self.render(example.messages[: index + 1], example.tools, False)
            if not text.startswith(after):
                raise BadRowError(_UNSTABLE.format(index))
            inside = after.rstrip()
            end = len(inside) if inside.endswith(self.special_tokens) else len(after)
        shown = message["content"].rpartition("</think>")[2].strip()
        if shown not in text[start:end]:
            raise BadRowError(_UNSTABLE.format(index))
        return start, end


_ROLES = ("user", "assistant", "user", "assistant")
_UNSTABLE = (
    "the chat template has no generation markers, and the conversation up to message {} renders to something else "
    "alone than inside the whole; use train_on: last_turn, or a template with {{% generation %}} markers"
)
