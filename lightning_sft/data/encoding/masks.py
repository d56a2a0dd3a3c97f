"""A conversation and whose words are chosen -> its text, and the spans of it that are trained."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.forms import FormedTracer
from lightning_sft.data.encoding.pieces import texts_of
from lightning_sft.data.encoding.template import REASONING_TAG, ChatTemplate, Span, Tools
from lightning_sft.data.encoding.trace import OnDroppedReasoning, Trace, Tracer
from lightning_sft.data.encoding.turns import Turns
from lightning_sft.data.types import BadRowError, Example, MaskFrom, Message

TEXT_KEYS = ("content", "reasoning_content", "name", "tool_call_id", "tool_calls")


class Masks:
    """Renders conversations, and finds in them what is trained.

    Args:
        template: the chat template.
        on_dropped_reasoning: ``error``, or ``allow`` the template to leave reasoning out.
    """

    def __init__(self, template: ChatTemplate, on_dropped_reasoning: OnDroppedReasoning = "error") -> None:
        self.template = template
        tracer = Tracer(template, on_dropped_reasoning)
        self.tracer = FormedTracer(tracer)
        self.turns = Turns(tracer)
        self._only_special = re.compile(rf"(?:\s|{'|'.join(map(re.escape, template.special_tokens)) or '(?!)'})*")

    def prompt(self, messages: Sequence[Message], tools: Tools, checked: bool = False) -> str:
        """Return the text up to where the assistant's next words begin.

        Args:
            messages: what was said before.
            tools: schemas of the tools.
            checked: whether these messages were found right before, as part of a longer conversation.

        Raises:
            BadRowError: the template refuses or loses part of the conversation, or a text holds a control token.
        """
        if checked:
            return self.tracer.render(messages, tools, prompt=True)
        self._check_control_tokens(messages, tools)
        return self.tracer.trace(messages, tools, prompt=True)[0].text

    def spans(self, example: Example, chosen: Sequence[int]) -> tuple[str, list[Span], list[int], MaskFrom]:
        """Return the rendered conversation, the spans of the ``chosen`` messages, and which message each belongs to.

        A span has the end of its turn in it.

        Raises:
            BadRowError: see `prompt`; or the template cannot be followed exactly.
        """
        trace, messages = self._trace(example)
        marked = None if trace.marked is None else self._by_markers(trace, messages, example.tools, chosen)
        if marked is None:
            by_turns = self._by_turns(trace, messages, example.tools, chosen)
            return trace.text, by_turns, list(chosen), MaskFrom.TURNS
        return trace.text, [span for span, _ in marked], [index for _, index in marked], MaskFrom.MARKERS

    def all_but(self, example: Example, left_out: Sequence[int]) -> tuple[str, list[Span]]:
        """Return the rendered conversation, and all of it but the messages ``left_out``."""
        trace, messages = self._trace(example)
        spans: list[Span] = []
        at = 0
        for index in left_out:
            if messages[index]["role"] == "assistant":
                start, end = self.turns.span(trace, messages, example.tools, index)
                spans.append((at, start))
                at = end
                continue
            for extent in trace.of_message.get(index, ()):
                if extent.start >= at:
                    spans.append((at, extent.start))
                    at = extent.end
        return trace.text, [span for span in (*spans, (at, len(trace.text))) if span[0] < span[1]]

    def _trace(self, example: Example) -> tuple[Trace, list[Message]]:
        self._check_control_tokens(example.messages, example.tools)
        return self.tracer.trace(example.messages, example.tools, marked=self.template.has_markers(example.tools))

    def _check_control_tokens(self, messages: Sequence[Message], tools: Tools) -> None:
        for i, message in enumerate(messages):
            for key in TEXT_KEYS:
                for text in texts_of(message.get(key)):
                    for found in self.template.special.finditer(text):
                        if message["role"] == "assistant" and REASONING_TAG.fullmatch(found.group()):
                            continue  # reasoning as the model itself writes it
                        raise BadRowError(_CONTROL.format(f"message {i}", found.group(), key), Code.CONTROL_TOKEN)
        for text in texts_of(tools):
            if match := self.template.special.search(text):
                raise BadRowError(_CONTROL.format("the row", match.group(), "tools"), Code.CONTROL_TOKEN)

    def _by_turns(self, trace: Trace, messages: Sequence[Message], tools: Tools, chosen: Sequence[int]) -> list[Span]:
        return [self.turns.span(trace, messages, tools, index) for index in chosen]

    def _by_markers(
        self, trace: Trace, messages: Sequence[Message], tools: Tools, chosen: Sequence[int]
    ) -> list[tuple[Span, int]] | None:
        """Return spans by the template's markers with their messages; None where one holds words of several."""
        spans: dict[int, list[Span]] = {}
        for start, end in trace.marked or ():
            first, behind = (bisect_left(trace.extents, place, key=lambda e: e.start) for place in (start, end))
            speakers = {extent.piece.message for extent in trace.extents[first:behind]}
            if len(speakers) > 1:
                return None
            if not speakers and first:  # such as the end of a turn in a block of its own
                speakers = {trace.extents[first - 1].piece.message}
            for index in speakers if start < end else ():
                spans.setdefault(index, []).append((start, end))
        found: list[tuple[Span, int]] = []
        for index in chosen if spans else ():
            own = spans.get(index, [])
            for extent in trace.of_message.get(index, ()):
                inside = any(start <= extent.start and extent.end <= end for start, end in own)
                if extent.piece.kind in ("text", "call") and not inside:
                    raise BadRowError(
                        f"the template's generation markers leave out {extent.piece.what} of message {index}. Move "
                        "them so that they enclose all that the assistant writes, or take them out of the template.",
                        Code.MARKERS,
                    )
            if own:
                own[-1] = self._with_end(trace, messages, tools, index, own[-1])
                parts = [self._without_header(trace, messages, tools, index, own[0]), *own[1:]]
                found += [(part, index) for part in parts]
        return found

    def _without_header(self, trace: Trace, messages: Sequence[Message], tools: Tools, index: int, span: Span) -> Span:
        """Cut a marked span so that it begins behind the generation prompt."""
        try:
            start = self.turns.start(trace, messages, tools, index)
        except BadRowError:  # it cannot be told without the markers: they alone decide
            return span
        return (start, span[1]) if span[0] < start < span[1] else span

    def _with_end(self, trace: Trace, messages: Sequence[Message], tools: Tools, index: int, span: Span) -> Span:
        """Stretch or cut a marked span so that it ends with the end of the turn."""
        text, (start, end) = trace.text, span
        inside = text[start:end].rstrip()
        closed = inside.endswith(self.template.special_tokens)
        end = start + len(inside) if closed else end
        try:
            turn = self.turns.end(trace, messages, tools, index)
        except BadRowError:  # it cannot be told without the markers: they alone decide
            turn = end
            if not closed and (match := self.template.special.match(text, end)):
                turn = match.end()
        if turn <= end:
            return start, end
        if self._only_special.fullmatch(text, end, turn):
            return start, turn
        if closed:
            return start, end
        if text[:turn].endswith(self.template.special_tokens):
            raise BadRowError(
                "the end of a turn would not be trained: the template's generation markers leave it out. Move "
                "{% endgeneration %} behind the token that ends the turn, or take the markers out of the template.",
                Code.MARKERS,
            )
        return start, end


_CONTROL = (
    "{} contains {!r} in {}, which the tokenizer would read as a special token. Take it out, or write it otherwise in "
    "the data."
)
