"""The texts of a conversation, each with two characters of its own, by which it is found in what a template writes.

The first and the last visible character of each text are exchanged for letters that it does not hold. A template copies
them like any other, so their positions in its output tell where each text of each message stands, however often
the same words are said, and whether it stands there at all. Lengths and surrounding white space stay as they are.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_sft.data.codes import Code
from lightning_sft.data.types import BadRowError, Message

Kind = Literal["text", "reasoning", "call", "label"]
"""What a text is: words, reasoning, part of a tool call, or a label (a name, an id) that a template may leave out."""

RARE = range(0x20000, 0x2A6DE)
RARE_CHARACTER = re.compile("[\U00020000-\U0002a6dd]")
"""Letters without upper and lower case that hardly any text holds, and that every way of printing leaves alone."""
QUOTES = string.whitespace + "\"'\\"
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
LABEL_KEYS = ("name", "tool_call_id")
CLOSES_REASONING = re.compile(r"(?=[^>\]]*(?:think|thought|reason))(?:[<\[]\|?/|<\w+\|>|[<\[]\|?end)", re.I)
"""A tag that ends reasoning: ``</think>``, ``[/THINK]``, ``<|END_THINKING|>``."""


@dataclass(frozen=True)
class Piece:
    """One text of a conversation.

    Args:
        message: index of its message.
        kind: see `Kind`.
        text: the text between its first and last visible character.
        ends: the two characters in their place; one where the text has one character.
        rest: what follows in the same field: white space, and what a template looks for.
        what: its name for messages.
    """

    message: int
    kind: Kind
    text: str
    ends: str
    rest: str
    what: str

    def stands_in(self, text: str, start: int, end: int) -> bool:
        """Whether characters [start, end) of a rendering are the whole text, as it is or escaped as in JSON."""
        found = text[start:end]
        return found in (self.text, json.dumps(self.text, ensure_ascii=False)[1:-1], json.dumps(self.text)[1:-1])


@dataclass(frozen=True)
class Bare:
    """What a call holds besides texts: the names of its arguments, and numbers, truth values and nulls.

    Args:
        message: index of its message.
        call: index of the call in the message.
        forms: how a template may write it.
        what: its name for messages.
    """

    message: int
    call: int
    forms: tuple[str, ...]
    what: str


class Coded:
    """A conversation whose texts carry characters of their own.

    Args:
        messages: the conversation.
        looked_for: what must stay as it is, see `ChatTemplate.looked_for`.
        labels: whether names and ids are coded, too, for a template may compare them: 2 both, 1 names, 0 none.

    Attributes:
        messages: the coded conversation.
        pieces: its texts.
        bare: what calls hold besides texts.
        starts: first character of a piece -> its index.
    """

    def __init__(self, messages: Sequence[Message], looked_for: re.Pattern[str], labels: int = 2) -> None:
        self.looked_for = looked_for
        self.pieces: list[Piece] = []
        self.bare: list[Bare] = []
        self._table: dict[int, str] = {}
        self._free = _unused(messages)
        self._labels = labels
        self.messages = [self._message(i, message) for i, message in enumerate(messages)]
        self.starts = {piece.ends[0]: i for i, piece in enumerate(self.pieces)}

    def decode(self, text: str) -> str:
        """Return a rendering of the coded conversation with the characters that were exchanged."""
        return text.translate(self._table)

    def _message(self, index: int, message: Message) -> Message:
        coded = dict(message)
        answers = message["role"] == "assistant"
        for key in REASONING_KEYS if answers else ():
            if isinstance(message.get(key), str):
                coded[key] = self._field(index, message[key], "reasoning", key)
        if isinstance(message["content"], str):
            coded["content"] = self._content(index, message["content"], answers)
        else:
            coded["content"] = [
                {**part, "text": self._content(index, part["text"], answers)} for part in message["content"]
            ]
        if message.get("tool_calls"):
            coded["tool_calls"] = [self._call(index, i, call) for i, call in enumerate(message["tool_calls"])]
        for key in LABEL_KEYS:
            if isinstance(message.get(key), str):
                coded[key] = self._label(index, message[key], key)
        return coded

    def _content(self, index: int, text: str, answers: bool) -> str:
        """Code a content; reasoning inside it is a text of its own."""
        bounds = [0]
        for match in self.looked_for.finditer(text):
            bounds += match.span()
        bounds.append(len(text))
        segments = list(zip(bounds[::2], bounds[1::2], strict=True))
        if not any(text[start:end].strip() for start, end in segments):
            return self._field(index, text, "text", "the text")
        coded, done = "", 0
        for start, end in segments:
            if not text[start:end].strip():
                continue
            after = self.looked_for.match(text, end)
            thinks = answers and after is not None and bool(CLOSES_REASONING.match(after.group()))
            kind: Kind = "reasoning" if thinks else "text"
            what = "the reasoning" if thinks else "the text"
            coded += text[done:start] + self._field(index, text[start:end], kind, what, text[end:])
            done = end
        return coded + text[done:]

    def _call(self, index: int, number: int, call: dict[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        if self._labels:
            function["name"] = self._field(index, function["name"], "call", f"the name of call {number}")
        else:
            name = function["name"]
            self.bare.append(Bare(index, number, (name,), f"the name of call {number}"))
        if "arguments" in function:
            function["arguments"] = self._arguments(index, number, function["arguments"], f"call {number}")
        coded = {**call, "function": function}
        if isinstance(call.get("id"), str):
            coded["id"] = self._label(index, call["id"], "id")
        return coded

    def _arguments(self, index: int, number: int, value: Any, what: str) -> Any:
        if isinstance(value, str):
            if value.strip() and not value.strip(QUOTES):
                escaped = (json.dumps(value, ensure_ascii=False)[1:-1], value)
                self.bare.append(Bare(index, number, escaped, what))
                return value
            return self._field(index, value, "call", what)
        if isinstance(value, list):
            return [self._arguments(index, number, item, what) for item in value]
        if isinstance(value, dict):
            coded = {}
            for key, item in value.items():
                quoted = json.dumps(key, ensure_ascii=False)
                self.bare.append(Bare(index, number, (quoted, key), f"argument {key!r} of {what}"))
                coded[key] = self._arguments(index, number, item, f"argument {key!r} of call {number}")
            return coded
        self.bare.append(Bare(index, number, (json.dumps(value), str(value)), what))
        return value

    def _label(self, index: int, text: str, what: str) -> str:
        return self._field(index, text, "label", what) if self._labels > (what != "name") else text

    def _field(self, index: int, text: str, kind: Kind, what: str, rest: str = "") -> str:
        """Return ``text`` with its first and last visible character exchanged, and note it; blank text as it is.

        Quotes and backslashes are passed over, for they are written otherwise within JSON.
        """
        bare = text.strip(QUOTES) or text.strip()
        if not bare:
            return text
        start = text.index(bare)
        end = start + len(bare)
        first = self._character(bare[0])
        last = self._character(bare[-1]) if len(bare) > 1 else ""
        self.pieces.append(Piece(index, kind, bare, first + last, text[end:] + rest, what))
        return text[:start] + first + bare[1 : len(bare) - 1] + last + text[end:]

    def _character(self, original: str) -> str:
        code = next(self._free, None)
        if code is None:
            raise BadRowError("the row has more texts than can be told apart; split it", Code.TOO_LARGE)
        self._table[code] = original
        return chr(code)


def _unused(messages: Sequence[Message]) -> Iterator[int]:
    """Return the rare letters that do not stand in the row itself."""
    used: set[str] = set()
    for text in texts_of(messages):
        used.update(RARE_CHARACTER.findall(text))
    return (code for code in RARE if chr(code) not in used)


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text in plain data, names of fields included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from texts_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_of(item)


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return plain data with every text changed, names of fields not."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: with_texts(item, change) for key, item in value.items()}
    return [with_texts(item, change) for item in value] if isinstance(value, list) else value
