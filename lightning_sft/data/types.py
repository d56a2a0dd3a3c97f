"""What the rooms of the data path hand to each other: a read record, an example, its tokens."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_sft.data.codes import Code
from lightning_sft.errors import UserError

PADDING = -1
"""Index of no row: what a rank gets when the rows do not divide by the number of ranks."""

Message = dict[str, Any]
"""One message of a conversation as chat templates read it: ``role``, ``content`` and, with tools, ``tool_calls``."""


class BadRowError(ValueError):
    """One row cannot be used. Never leaves the data room.

    Args:
        reason: what is wrong, what is allowed, what to change.
        code: the cause in one word.
    """

    def __init__(self, reason: str, code: Code) -> None:
        super().__init__(reason, code)
        self.code = code

    @override
    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class BadRow:
    """A row that was not used.

    Args:
        where: file and line, or source and index.
        reason: what is wrong with it; long reasons are cut.
        text: the row; only its beginning is kept.
        code: the cause in one word.
    """

    where: str
    reason: str
    text: str = ""
    code: Code = Code.UNREADABLE

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", printable(self.reason, 400))
        object.__setattr__(self, "text", printable(self.text, 200))


Flag = bool | float | None
"""Whether a message is trained; a number is the weight of its loss; None leaves it to ``train_on``."""
SPANS = "loss_spans"
"""Key of a message: ``[[start, end, weight], ...]``, characters of its content and the weight of their loss."""


@dataclass(frozen=True)
class Record:
    """One row of a file as it was read, before anything is known about its format.

    Args:
        where: file and line, or source and index.
        row: column name to value.
    """

    where: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One training example, in one form for all formats.

    Args:
        messages: the conversation; empty for plain text.
        flags: for each message its own train flag: ``True`` or ``False`` decides, a number decides and weighs its
            loss, ``None`` leaves it to ``train_on``; empty leaves all of them to it.
        prompt_messages: how many of the first messages are the prompt of a prompt/completion row.
        tools: JSON schemas of the tools, for the chat template.
        plain: prompt and completion as strings, for use without a chat template; ``("", text)`` for plain text,
            ``None`` where the row is a conversation by nature.
        where: file and line, or source and index.
        item: whatever the source needs to score an answer.
        template_kwargs: variables for the chat template that the row itself brings.
        weight: of the loss of the whole row.
        unused: columns of the row, and keys of its messages as ``messages.KEY``, that the format does not read.
    """

    messages: tuple[Message, ...]
    flags: tuple[Flag, ...] = ()
    prompt_messages: int = 0
    tools: tuple[dict[str, Any], ...] | None = None
    plain: tuple[str, str] | None = None
    where: str = ""
    item: Any = None
    template_kwargs: dict[str, Any] | None = None
    weight: float = 1.0
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Give every message its flag.

        Raises:
            UserError: another number of flags than messages.
        """
        if not self.flags:
            object.__setattr__(self, "flags", (None,) * len(self.messages))
        elif len(self.flags) != len(self.messages):
            raise UserError(
                f"An Example ({self.where or 'of a data source'}) has {len(self.messages)} messages and "
                f"{len(self.flags)} flags. Allowed: a flag for each message, or flags=() to leave all to train_on."
            )

    @property
    def reference(self) -> str | None:
        """The text that the model should answer with: the last message, or the completion."""
        if not self.has_answer:
            return None
        return str(self.messages[-1]["content"]) if self.messages else self.plain[1] if self.plain else None

    @property
    def has_answer(self) -> bool:
        """Whether the row ends with the assistant's words; plain text without a prompt counts as such."""
        return self.messages[-1]["role"] == "assistant" if self.messages else True

    @property
    def has_prompt(self) -> bool:
        """Whether there is something to generate from."""
        return len(self.messages) > self.has_answer or bool(self.plain and self.plain[0])

    def with_system(self, system: str | None) -> Example:
        """Return the example with a system prompt, where it is a conversation without one."""
        if not system or not self.messages or self.messages[0]["role"] == "system":
            return self
        return replace(
            self,
            messages=({"role": "system", "content": system}, *self.messages),
            flags=(None, *self.flags),
            prompt_messages=self.prompt_messages + (self.prompt_messages > 0),
        )

    @cached_property
    def key(self) -> bytes:
        """A digest of what stands in the example; equal examples have equal keys wherever they were read."""
        kwargs = [self.template_kwargs] if self.template_kwargs else []
        return _digest([self.messages, self.tools, None if self.messages else self.plain, *kwargs])

    @cached_property
    def prompt_key(self) -> bytes:
        """A digest of everything before the last message (of the whole text, for plain text)."""
        if self.messages:
            return _digest([self.messages[:-1], self.tools])
        assert self.plain is not None
        return _digest(self.plain[0] or self.plain[1])


def _digest(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def printable(text: str, length: int) -> str:
    """Return the beginning of any text in a form that every terminal and file can take."""
    cut = text[:length] + ("..." if len(text) > length else "")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


class MaskFrom(str, Enum):
    """Where it is known from what is trained."""

    MARKERS = "generation markers of the template"
    TURNS = "turns found in the template's text"
    ROW = "the row itself, without a chat template"
    ROW_WITH_CONTROL_TOKENS = "the row itself, whose control tokens are read as such"


@dataclass(frozen=True)
class Encoded:
    """One example as token ids.

    Args:
        ids: (length,) token ids.
        trained: (length,) whether the loss reads the token as a target.
        mask: where that is known from, see `MaskFrom`.
        weights: (length,) what the loss of each token is multiplied by; None for 1.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    mask: MaskFrom = MaskFrom.ROW
    weights: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class GenerationRow:
    """One row to generate an answer for.

    Args:
        index: index of the row in its dataset, as in ``batch["row"]``.
        source: index into ``SFTDataModule.source_names``.
        prompt_ids: token ids of the prompt, ending where the answer begins.
        prompt_text: the same as text.
        reference: the expected answer, where the row has one.
        stage: ``val``, ``test`` or ``predict``.
    """

    index: int
    source: int
    prompt_ids: list[int]
    prompt_text: str
    reference: str | None
    stage: str
