"""Where each of the assistant's turns begins and ends in a rendered conversation.

A turn begins where the template's generation prompt ends, and ends with the last token that closes it. Both are texts
that a template writes around messages, not in them. They are read off a short conversation of the same shape, rendered
once for many rows and many turns: what the generation prompt adds there must follow the message before the turn, and
what stands at its end must follow the turn's last text. Where they do not, the beginning of the conversation itself is
rendered and asked.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.pieces import QUOTES
from lightning_sft.data.encoding.tails import ASKED, Tails
from lightning_sft.data.encoding.template import REASONING_TAG, Span, Tools
from lightning_sft.data.encoding.trace import Extent, Trace, Tracer, last_of
from lightning_sft.data.types import BadRowError, Message

OPENING_TAG = rf"(?:{REASONING_TAG.pattern}|[<\[]/?[^\s<>\[\]]{{0,12}}(?:channel|response)[^<>\[\]\s]{{0,20}}[>\]])"
OPENER = re.compile(rf"(?:\s*{OPENING_TAG}\w*)+\s*$", re.I)
"""What a generation prompt opens for the answer, beyond the header of its turn: reasoning, a channel."""


class Turns:
    """Finds the turns of the assistant in traced conversations of one chat template.

    Args:
        tracer: renders and traces.
    """

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.template = tracer.template
        self.tails = Tails(tracer)
        self._standing: dict[bool, str] = {}

    def span(self, trace: Trace, messages: Sequence[Message], tools: Tools, index: int) -> Span:
        """Return the characters that the assistant writes as message ``index``, the end of its turn included.

        Raises:
            BadRowError: they cannot be told from the text, or another message stands between them.
        """
        own = trace.of_message.get(index)
        if not own:
            raise _unstable(messages, index, "it has no text that could be found")
        start = self.start(trace, messages, tools, index)
        end = self.end(trace, messages, tools, index)
        first, behind = (bisect_left(trace.extents, place, key=_start_of) for place in (start, end))
        for extent in trace.extents[first:behind]:
            if extent.piece.message != index:
                reason = f"message {extent.piece.message} stands inside it"
                raise _unstable(messages, index, reason)
        if start > own[0].start:
            raise _unstable(messages, index, "a part of it stands before its turn")
        return start, end

    def start(self, trace: Trace, messages: Sequence[Message], tools: Tools, index: int) -> int:
        """Return where a turn begins: behind the generation prompt, as far as the conversation has it.

        Raises:
            BadRowError: what stands before the turn is not what a generation prompt would be.
        """
        limit = trace.of_message[index][0].start
        before = bisect_left(trace.extents, limit, key=_start_of) - 1
        header = self._header(tools)
        if before < 0:
            place = trace.text.rfind(header, 0, limit) if header else -1
            if place < 0:
                raise _unstable(messages, index, "no generation prompt stands before it")
            return place + len(header)
        begins = list(_ends(trace, trace.extents[before].piece.message, limit))
        for prompt in self.tails.forms(messages[:index], tools, prompt=True):
            start = next(
                (
                    begin + len(prompt)
                    for begin in begins
                    if trace.text.startswith(prompt, begin) and begin + len(prompt) <= limit
                ),
                None,
            )
            if start is None:
                start = self._without_opener(trace.text, prompt, begins, limit)
            if start is not None:
                # behind a tool's result some prompts lack the header that the answer has
                place = trace.text.rfind(header, start, limit) if header.strip() else -1
                return start if place < 0 else place + len(header)
        begin = trace.extents[before].end
        place = trace.text.rfind(header, begin, limit) if self.template.special.search(header) else -1
        if place < 0:
            raise _unstable(messages, index, "the generation prompt does not stand before it")
        return place + len(header)

    def _header(self, tools: Tools) -> str:
        """Return the header of the assistant's turn: what a generation prompt adds behind a question."""
        prompt = self.tails.of(ASKED, tools, prompt=True) or ""
        return prompt[common_prefix(prompt, self.tails.of(ASKED, tools, prompt=False) or "") :]

    def _without_opener(self, text: str, prompt: str, begins: Sequence[int], limit: int) -> int | None:
        """Return where a turn begins whose header is the generation prompt's, but not what that opens for the answer.

        Reasoning models' prompts end with an opener such as ``<think>`` that past answers, or answers without
        reasoning, lack.
        """
        opener = OPENER.search(prompt)
        for begin in begins:
            common = common_prefix(prompt, text[begin:limit])
            whole = not text[begin + common : limit].strip(QUOTES)  # a text is traced from behind its quotes
            rest = prompt[common:]
            if opener is not None and common >= opener.start():
                return begin + (common if whole or text[begin + common - 1] in ">]" else opener.start())
            at_border = whole or prompt[:common].endswith("\n")
            if at_border and prompt[:common].strip() and rest.strip() and not self.template.special.search(rest):
                return begin + common  # it opens with words, such as "Here is my reasoning:"
        return None

    def end(self, trace: Trace, messages: Sequence[Message], tools: Tools, index: int) -> int:
        """Return where a turn ends: behind the last token that closes it.

        Raises:
            BadRowError: it is closed otherwise inside the whole than at the end of a conversation.
        """
        text, last = trace.text, trace.end(index)
        later = range(bisect_left(trace.extents, last, key=_start_of), len(trace.extents))
        limit = next((trace.extents[i].start for i in later if trace.extents[i].piece.message != index), len(text))
        closings = (
            closing.removesuffix(self._standing_prompt(tools))
            for closing in self.tails.forms(messages[: index + 1], tools, prompt=False)
        )
        begins = list(_ends(trace, index, limit))
        if index == len(messages) - 1:
            standing = self._standing_prompt(tools)
            return self._closed(text, last, len(text.removesuffix(standing)))
        user_next = messages[index + 1]["role"] == "user"
        bare: str | None = None
        for closing in closings:
            if not closing.strip() and user_next:
                bare = closing  # perhaps it is closed only by what comes next
                break
            for begin in begins:
                for form in dict.fromkeys((closing, closing.rstrip(), self._not_at_the_end(closing, tools))):
                    if text.startswith(form, begin) and begin + len(form) <= limit and (form or not closing):
                        return self._closed(text, begin, begin + len(form), limit)
                if closing.strip() and (match := self._spaced(closing).match(text, begin, limit)):
                    return self._closed(text, begin, match.end(), limit)
        if user_next and (end := self._before_header(text, last, limit, tools)) is not None:
            return self._closed(text, last, end, limit)
        if bare is not None and text.startswith(bare, begins[0]):
            return self._closed(text, begins[0], begins[0] + len(bare), limit)
        raise _unstable(messages, index, "it is closed otherwise inside the whole than alone")

    def _not_at_the_end(self, closing: str, tools: Tools) -> str:
        """Return a closing without the token that a template writes only where a conversation ends, if it has one."""
        parts = self._split(closing.rstrip())
        closed, prompt = (self.tails.of(ASKED, tools, asked) or "" for asked in (False, True))
        is_end = parts and closed.rstrip().endswith(parts[-1]) and parts[-1] not in prompt
        return "".join(parts[:-1]).rstrip() if is_end and self.template.special.fullmatch(parts[-1]) else closing

    def _spaced(self, closing: str) -> re.Pattern[str]:
        """Return what finds a closing with other white space around its special tokens and lines."""
        words = [part for part in re.split(rf"\s+|({self.template.special.pattern})", closing) if part]
        return re.compile(r"\s*".join(map(re.escape, words)))

    def _before_header(self, text: str, last: int, limit: int, tools: Tools) -> int | None:
        """Return where the header of a user's turn begins behind an answer; None if there is no end token before it.

        The header is what a conversation's first message from the user has before it, as far as it stands here.
        """
        # a text is traced from behind its quotes, which are no part of the header
        between = self._split(text[last:limit].rstrip(QUOTES))
        header = self._split((self.tails.of(ASKED, tools, prompt=False, before=True) or "").rstrip(QUOTES))
        behind = self._split(self.tails.of(ASKED, tools, prompt=False) or "")
        same = 0
        while same < min(len(between), len(header)) and between[-1 - same] == header[-1 - same]:
            same += 1
        end = len(between) - same
        preamble = any(not self.template.special.fullmatch(part) for part in header[: len(header) - same])
        if preamble and same:  # what closes a preamble, or a question, closes an answer, too
            whole = between[end : end + len(behind)] == behind
            end += len(behind) if whole else behind[:1] == between[end : end + 1]
        closing = "".join(between[:end])
        closed = closing.rstrip().endswith(self.template.special_tokens)
        return last + len(closing) if closed and "".join(between[end:]).strip() else None

    def _standing_prompt(self, tools: Tools) -> str:
        """Return the header of the next answer that a template writes behind every conversation, asked or not."""
        key = bool(tools)
        if key not in self._standing:
            try:
                self._standing[key] = self._find_standing_prompt(tools)
            except BadRowError:
                self._standing[key] = ""
        return self._standing[key]

    def _find_standing_prompt(self, tools: Tools) -> str:
        answer: Message = {"role": "assistant", "content": "xx"}
        trace = self.tracer.trace([*ASKED, answer, *ASKED], tools)
        if trace.lost:
            return ""
        last, behind = trace.end(1), trace.of_message[2][0].start
        end = self._before_header(trace.text, last, behind, tools)
        closing = trace.text[last : self._closed(trace.text, last, last if end is None else end, behind)]
        tail = self.tails.render([*ASKED, answer], tools, prompt=False)
        header = tail.removeprefix(closing)
        closed, prompt = (self.tails.of(ASKED, tools, asked) or "" for asked in (False, True))
        stands = (
            closing and header.strip() and tail.startswith(closing) and closed.endswith(header) and header in prompt
        )
        return header if stands else ""

    def _split(self, text: str) -> list[str]:
        """Return a text cut around its special tokens."""
        return [part for part in re.split(f"({self.template.special.pattern})", text) if part]

    def _closed(self, text: str, last: int, end: int, limit: int | None = None) -> int:
        """Return the end of a turn: the tokenizer's end token belongs to it, white space behind a token does not."""
        eos = self.template.tokenizer.eos_token
        while eos and limit is not None and text.startswith(eos, end) and end + len(eos) <= limit:
            end += len(str(eos))
        inside = text[last:end].rstrip()
        return last + len(inside) if inside.endswith(self.template.special_tokens) else end


def common_prefix(first: str, second: str) -> int:
    """Return how many characters two texts begin with alike."""
    if second.startswith(first):
        return len(first)
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _start_of(extent: Extent) -> int:
    return extent.start


def _ends(trace: Trace, message: int, limit: int) -> Iterator[int]:
    """Yield where a message may end: with all of what follows its last text in the same field, or less of it."""
    last = trace.of_message[message][-1]
    end = trace.end(message)
    rest = last.piece.rest if end == last.end else ""
    common = common_prefix(rest, trace.text[end:limit])
    yield from range(end + common, max(end + common - 64, end), -1)
    yield end


def _unstable(messages: Sequence[Message], index: int, why: str) -> BadRowError:
    """Return the error for a turn that cannot be followed, with what helps against it."""
    markers = "give the tokenizer a template with {% generation %} markers around what the assistant writes"
    earlier = index < last_of("user", messages)
    return BadRowError(
        f"where message {index} begins or ends cannot be told from what the chat template writes, for it has no "
        f"generation markers: {why}. {'Set train_on: last_turn, or ' + markers if earlier else markers.capitalize()}.",
        Code.UNSTABLE,
    )
