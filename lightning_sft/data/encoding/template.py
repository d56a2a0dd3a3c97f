"""The chat template of a tokenizer: what it renders, what its text tells about it."""

from __future__ import annotations

import ast
import datetime
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightning_sft.data.codes import Code
from lightning_sft.data.types import BadRowError, Message
from lightning_sft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Characters [start, end) of a rendered conversation."""

Tools = Sequence[dict[str, Any]] | None

REASONING_TAG = re.compile(r"[<\[]/?[^\s<>\[\]]{0,12}(?:think|thought|reason)[^<>\[\]\s]{0,20}[>\]]", re.I)
"""A tag that opens or closes reasoning, such as ``<think>`` or ``[/THINK]``."""

CLOCK = "strftime_now"
"""The function by which templates ask for the date; as a variable of ours it is a day, such as ``2026-01-31``."""

QUOTED = r"""(?P<quoted>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
ASKS = re.compile(rf"\b{CLOCK}\(\s*{QUOTED}\s*\)")
"""Where a template asks for the date, and in which form."""

LOOKED_FOR = re.compile(
    rf"""{QUOTED}\s*(?:not\s+)?\bin\b|\.(?:r?split|startswith|endswith|replace|r?partition|r?find|count)\(\s*"""
    + QUOTED.replace("quoted", "argument")
)
"""A text that a template looks for in a message: ``'</think>' in content``, ``content.split('</think>')``."""


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: a tokenizer, possibly without a chat template.
        kwargs: variables for the template, such as ``enable_thinking``; ``strftime_now`` is a day that the template is
            told in place of today.

    Raises:
        UserError: ``strftime_now`` is no day.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kwargs: dict[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self.kwargs = dict(kwargs or {})
        self._variables = {name: value for name, value in self.kwargs.items() if name != CLOCK}
        self._day = _day(self.kwargs[CLOCK]) if CLOCK in self.kwargs else None
        if self._day is not None:
            self.kwargs[CLOCK] = str(self._day)  # plain data, whatever YAML made of it

    @cached_property
    def source(self) -> str:
        """The template itself; of several the default one."""
        template = self.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default", "")
        return str(template or "")

    @cached_property
    def every_source(self) -> str:
        """All templates of the tokenizer: one for tools may stand beside the default."""
        template = self.tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else self.source

    @property
    def tells_the_date(self) -> bool:
        """Whether it writes today's date, and so other tokens tomorrow."""
        return f"{CLOCK}(" in self._of_the_day(self.every_source)

    def _of_the_day(self, source: str) -> str:
        """Return a template with a day in the place of today; transformers hands no functions on to templates."""
        day = self._day
        return source if day is None else ASKS.sub(lambda m: repr(day.strftime(ast.literal_eval(m["quoted"]))), source)

    def render(self, messages: Sequence[Message], tools: Tools, prompt: bool) -> str:
        """Return the text of ``messages``; with ``prompt``, up to where the assistant's next words begin.

        Raises:
            BadRowError: the template refuses the messages.
        """
        given: Any = list(tools) if tools else None
        of_the_day: dict[str, Any] = {}
        if self._day is not None:
            of_the_day["chat_template"] = self._of_the_day(self.tokenizer.get_chat_template(None, given))
        with _refusals():
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=given,
                tokenize=False,
                add_generation_prompt=prompt,
                **of_the_day,
                **self._variables,
            )
        assert isinstance(text, str)
        return text

    def render_marked(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[Span]]:
        """Return the text of ``messages``, and what stands between the template's generation markers."""
        from transformers.utils.chat_template_utils import render_jinja_template

        schemas: Any = list(tools) if tools else None
        rendered: Any
        with _refusals():
            rendered = render_jinja_template(
                conversations=[list(messages)],
                tools=schemas,
                chat_template=self._of_the_day(self.tokenizer.get_chat_template(None, schemas)),
                return_assistant_tokens_mask=True,
                **{**self.tokenizer.special_tokens_map, **self._variables},
            )
        texts, marked = rendered
        return str(texts[0]), [(int(start), int(end)) for start, end in marked[0]]

    def has_markers(self, tools: Tools) -> bool:
        """Whether the template marks what the assistant generates."""
        source = self.tokenizer.get_chat_template(None, list(tools)) if tools else self.source
        return re.search(r"{%[-+]?\s*generation\s*[-+]?%}", source) is not None

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """The tokenizer's special tokens as text, longest first."""
        added = self.tokenizer.added_tokens_decoder.values()
        every = {*self.tokenizer.all_special_tokens, *(token.content for token in added if token.special)} - {""}
        return tuple(sorted(every, key=len, reverse=True))

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Finds the next special token in a text."""
        return re.compile("|".join(map(re.escape, self.special_tokens)) or "(?!)")

    @cached_property
    def looked_for(self) -> re.Pattern[str]:
        """Finds what the template itself looks for in a message, and tags of reasoning: it must stay as it is."""
        found = set()
        for match in LOOKED_FOR.finditer(self.every_source):
            text = ast.literal_eval(match["quoted"] or match["argument"])
            if len(text.strip()) > 2 and re.search(r"[^\w\s]", text):
                found.add(text)
        literals = [re.escape(text) for text in sorted(found, key=len, reverse=True)]
        return re.compile("|".join([*literals, REASONING_TAG.pattern]), re.I)


def _day(given: object) -> datetime.date:
    try:
        return datetime.date.fromisoformat(str(given))
    except ValueError as error:
        raise UserError(
            f"data.template_kwargs has {CLOCK}: {given!r}, which must be the day to tell the chat template "
            'instead of today, such as "2026-01-31".'
        ) from error


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what a template raises into a bad row."""
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as e:
        raise BadRowError(f"the chat template refuses the conversation: {e}", Code.TEMPLATE_REFUSES) from e
