"""Where each text of a conversation stands in what the chat template writes, and whether all of it does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any, Literal

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.pieces import RARE_CHARACTER, REASONING_KEYS, Coded, Piece
from lightning_sft.data.encoding.template import ChatTemplate, Span, Tools
from lightning_sft.data.types import BadRowError, Message

OnDroppedReasoning = Literal["error", "allow"]

LEFT_OUT = {
    "text": Code.LEFT_OUT_TEXT,
    "reasoning": Code.LEFT_OUT_REASONING,
    "call": Code.LEFT_OUT_CALL,
    "label": Code.LEFT_OUT_TEXT,
}
ANSWERS = {
    Code.LEFT_OUT_TEXT: "Take it out of the row, or give the tokenizer a template that writes it.",
    Code.LEFT_OUT_CALL: "Take the calls out of the row, or give the tokenizer a template that writes tool_calls.",
    Code.LEFT_OUT_REASONING: "Set data.on_dropped_reasoning: allow to train without it, or take it out of the row.",
}
"""Code -> what to change."""


@dataclass(frozen=True)
class Extent:
    """Where a text stands: characters [start, end) of a rendering."""

    start: int
    end: int
    piece: Piece


@dataclass
class Trace:
    """A rendered conversation and where its texts stand.

    Args:
        text: what the template writes.
        extents: the texts that were found, in the order of their places.
        lost: the texts that were not.
        ends: message -> end of what calls hold besides texts, where it stands behind the message's texts.
        marked: what the template's generation markers enclose; None where it has none.
    """

    text: str
    extents: list[Extent]
    lost: list[Piece]
    ends: dict[int, int]
    marked: list[Span] | None = None

    @cached_property
    def of_message(self) -> dict[int, list[Extent]]:
        """Message -> its extents."""
        found: dict[int, list[Extent]] = {}
        for extent in self.extents:
            found.setdefault(extent.piece.message, []).append(extent)
        return found

    def end(self, message: int) -> int:
        """Return where the last of a message's texts ends, without what follows it in the same field."""
        return max(self.of_message[message][-1].end, self.ends.get(message, 0))


class Tracer:
    """Finds the texts of conversations in what a chat template writes.

    Args:
        template: the chat template.
        on_dropped_reasoning: ``error``, or ``allow`` a template to leave reasoning out.
    """

    def __init__(self, template: ChatTemplate, on_dropped_reasoning: OnDroppedReasoning = "error") -> None:
        self.template = template
        self.on_dropped_reasoning = on_dropped_reasoning
        self._labels = 2

    def trace(self, messages: Sequence[Message], tools: Tools, prompt: bool = False, marked: bool = False) -> Trace:
        """Return where the texts of a conversation stand; some may be lost.

        Args:
            messages: the conversation.
            tools: schemas of its tools.
            prompt: whether the text ends where the assistant's next words begin.
            marked: whether to note the template's generation markers.

        Raises:
            BadRowError: the template refuses the conversation, or changes its texts.
        """
        text = self.template.render(messages, tools, prompt)
        for labels in range(self._labels, -1, -1):
            coded = Coded(messages, self.template.looked_for, labels)
            spans: list[Span] | None = None
            try:
                if marked:
                    written, spans = self.template.render_marked(coded.messages, tools)
                else:
                    written = self.template.render(coded.messages, tools, prompt)
            except BadRowError:  # it compares a name or an id, or takes a text apart
                continue
            if coded.decode(written) == text:
                self._labels = labels
                return _locate(text, written, coded, spans)
        raise BadRowError(
            "the chat template changes the texts of the conversation depending on what they say, so that they cannot "
            "be found in what it writes. Give the tokenizer a template that writes them as they are.",
            Code.REWRITTEN,
        )

    def check(self, trace: Trace, messages: Sequence[Message], tools: Tools) -> None:
        """Raise where the template does not write all that the conversation holds.

        Raises:
            BadRowError: something is left out.
        """
        for tool in tools or ():
            name = tool.get("function", tool).get("name")
            if isinstance(name, str) and not _stands_between(name, trace):
                raise BadRowError(
                    f"the row has tools, and the chat template does not use them: it does not write {name!r}. Take "
                    "the column tools out, or give the tokenizer a template for tools.",
                    Code.LEFT_OUT_TOOLS,
                )
        if trace.lost:
            last_user = last_of("user", messages)
            for piece in trace.lost:
                if piece.kind == "reasoning" and (
                    self.on_dropped_reasoning == "allow"
                    or (piece.message < last_user and self._keeps_reasoning(piece.what in REASONING_KEYS))
                ):
                    continue
                code = LEFT_OUT[piece.kind]
                role = messages[piece.message]["role"]
                raise BadRowError(
                    f"the chat template leaves out or changes {piece.what} of message {piece.message}, from {role}. "
                    f"{ANSWERS[code]}",
                    code,
                )

    @cached_property
    def _keeps(self) -> dict[bool, bool]:
        return {}

    def _keeps_reasoning(self, as_field: bool) -> bool:
        """Whether the template writes the reasoning of the last answer: then leaving out earlier ones is its way."""
        if as_field not in self._keeps:
            thought, said = "a thought", "an answer"
            answer: Message = {"role": "assistant", "content": said, REASONING_KEYS[0]: thought}
            if not as_field:
                answer = {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{said}"}
            try:
                text = self.template.render([{"role": "user", "content": "x"}, answer], None, False)
            except BadRowError:
                text = ""
            self._keeps[as_field] = thought in text
        return self._keeps[as_field]


def last_of(role: str, messages: Sequence[Message]) -> int:
    """Return the index of the last message of a role, -1 if there is none."""
    return max((i for i, message in enumerate(messages) if message["role"] == role), default=-1)


def _locate(text: str, written: str, coded: Coded, spans: list[Span] | None) -> Trace:
    places: dict[str, list[int]] = {}
    for match in RARE_CHARACTER.finditer(written):
        places.setdefault(match.group(), []).append(match.start())
    extents: list[Extent] = []
    lost: list[Piece] = []
    for piece in coded.pieces:
        firsts, lasts = places.get(piece.ends[0], []), places.get(piece.ends[-1], [])
        found = [
            Extent(start, end + 1, piece)
            for start, end in zip(firsts, lasts, strict=False)
            if piece.stands_in(text, start, end + 1)
        ]
        # a name or an id of a call is often written again beside its result: the first place is the call's
        extents += found[:1] if piece.kind in ("call", "label") else found
        if not found and piece.kind != "label":
            lost.append(piece)
    extents.sort(key=lambda extent: extent.start)
    trace = Trace(text, extents, lost, {}, spans)
    _find_bare(trace, coded)
    return trace


def _find_bare(trace: Trace, coded: Coded) -> None:
    """Find what calls hold besides texts: behind the call's other parts, and before the next message."""
    starts: dict[int, int] = {}
    limits: dict[int, int] = {}
    for before, behind in pairwise(trace.extents):
        if before.piece.message != behind.piece.message:
            limits[before.piece.message] = behind.start
            starts.setdefault(behind.piece.message, before.end)
    at: dict[tuple[int, int], int] = {}
    for bare in coded.bare:
        start = starts.get(bare.message, 0)
        limit = limits.get(bare.message, len(trace.text))
        for begin, form in product(dict.fromkeys((at.get((bare.message, bare.call), start), start)), bare.forms):
            if (place := trace.text.find(form, begin, limit)) >= 0:
                at[bare.message, bare.call] = end = place + len(form)
                trace.ends[bare.message] = max(trace.ends.get(bare.message, 0), end)
                break
        else:
            trace.lost.append(Piece(bare.message, "call", bare.forms[0], "", "", bare.what))


def _stands_between(name: str, trace: Trace) -> bool:
    """Whether a name stands in what the template writes around the texts of the messages."""
    place = trace.text.find(name)
    while place >= 0:
        if not any(extent.start <= place < extent.end for extent in trace.extents):
            return True
        place = trace.text.find(name, place + 1)
    return False


def shape_of(value: Any) -> Any:
    """Return plain data of the same shape: texts become ``xx``, of arguments only the last one stays.

    >>> shape_of({"city": "Ulm", "days": 3, "where": {"lat": 1.5}})
    {'k': {'k': 1.5}}
    """
    if isinstance(value, str):
        return "xx" if value.strip() else ""
    if isinstance(value, dict):
        return {"k": shape_of(list(value.values())[-1])} if value else {}
    return [shape_of(value[-1])] if isinstance(value, list) and value else value


def key_of(messages: Sequence[Message], *rest: object) -> str:
    """Return messages as a text by which equal ones are found again."""
    return json.dumps([list(messages), *rest], default=str)
