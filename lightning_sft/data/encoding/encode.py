"""One example -> token ids and the mask of what is trained. The single place where text becomes tokens."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightning_sft.data.encoding.chat import ChatTemplate, Span
from lightning_sft.data.storage.digests import tokenizer_digest
from lightning_sft.data.types import BadRowError, Encoded, Example
from lightning_sft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["assistant", "completion", "last_turn", "all"]
ApplyChatTemplate = Literal["auto", "always", "never"]


class Encoder:
    """Turns examples into token ids with a loss mask, and into prompts for generation.

    Args:
        tokenizer: the model's tokenizer.
        train_on: whose words are trained: ``assistant`` all of the assistant's, but for those in the prompt of a
            prompt/completion row; ``completion`` the completion, in other rows the last turn; ``last_turn`` what the
            assistant says after the last user message; ``all`` every token. A message's own flag decides over this.
        apply_chat_template: whether rows of plain strings are put into the chat template: ``auto`` where the tokenizer
            has one, ``always``, or ``never``. Conversations always are, texts never.
        template_kwargs: variables for the template.

    Raises:
        UserError: ``always``, and the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        train_on: TrainOn = "assistant",
        apply_chat_template: ApplyChatTemplate = "auto",
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.template = ChatTemplate(tokenizer, template_kwargs)
        if apply_chat_template == "always" and not self.template.source:
            raise UserError(_NO_TEMPLATE.format("apply_chat_template: always was given"))
        self.templates_strings = apply_chat_template != "never" and bool(self.template.source)

    def identity(self) -> list[Any]:
        """Return what its results depend on besides the example, as plain data.

        Raises:
            TypeError: see `tokenizer_digest`.
        """
        # a template that writes today's date gives other tokens tomorrow
        today = str(datetime.date.today()) if "strftime_now" in self.template.source else None
        tokenizer = tokenizer_digest(self.tokenizer)
        return [tokenizer, self.train_on, self.templates_strings, self.template.kwargs, today]

    def __call__(self, example: Example) -> Encoded:
        """Return the ids of ``example`` and which of them are trained.

        Raises:
            BadRowError: the row cannot be rendered or tokenised exactly, or nothing of it would be trained.
            UserError: the row is a conversation, and the tokenizer has no chat template.
        """
        if not example.has_answer:
            ids = self.prompt(example)[1]
            return Encoded(np.array(ids, np.int32), np.zeros(len(ids), np.bool_))
        text, spans = self._templated(example) if self._is_templated(example) else self._plain(example)
        encoded = self._tokenize(text, spans)
        if not encoded.trained.any():
            raise BadRowError(
                f"nothing would be trained: train_on={self.train_on!r} and the row's flags select no token"
            )
        return encoded

    def prompt(self, example: Example) -> tuple[str, list[int]]:
        """Return text and ids of what stands before the answer."""
        if self._is_templated(example):
            before = example.messages[:-1] if example.has_answer else example.messages
            text = self.template.render(before, example.tools, prompt=True)
        else:
            assert example.plain is not None
            text = self._bos + example.plain[0]
        return text, self._ids(text)

    def _is_templated(self, example: Example) -> bool:
        if example.plain is not None:
            return self.templates_strings and bool(example.messages)
        if not self.template.source:
            raise UserError(_NO_TEMPLATE.format(f"{example.where} is a conversation"))
        return True

    def _templated(self, example: Example) -> tuple[str, list[Span]]:
        if self.train_on == "all" and not any(flag is False for flag in example.flags):
            text = self.template.text(example)
            return self._ended(text, [(0, len(text))])
        chosen = [i for i in range(len(example.messages)) if self._is_trained(example, i)]
        text, spans = self.template.spans(example, chosen)
        ends_with_answer = bool(chosen) and chosen[-1] == len(example.messages) - 1
        return self._ended(text, spans) if ends_with_answer else (text, spans)

    def _ended(self, text: str, spans: list[Span]) -> tuple[str, list[Span]]:
        """Make sure that the last turn's end is trained: the template's end token, or else the tokenizer's own."""
        special = self.template.special_tokens
        if not spans or text[: spans[-1][1]].rstrip().endswith(special):
            return text, spans
        if text.rstrip().endswith(special):
            raise BadRowError("the end of the last turn would not be trained: the template's markers leave it out")
        return text + self._eos, [*spans[:-1], (spans[-1][0], len(text) + len(self._eos))]

    def _is_trained(self, example: Example, index: int) -> bool:
        flag = example.flags[index]
        if flag is not None:
            return flag
        if self.train_on == "all":
            return True
        if example.messages[index]["role"] != "assistant":
            return False
        last_user = max((i for i, m in enumerate(example.messages) if m["role"] == "user"), default=-1)
        if self.train_on == "last_turn" or (self.train_on == "completion" and not example.prompt_messages):
            return index > last_user
        return index >= example.prompt_messages

    def _plain(self, example: Example) -> tuple[str, list[Span]]:
        assert example.plain is not None
        prompt, completion = example.plain
        eos, bos = self._eos, self._bos
        text = bos + prompt + completion + ("" if completion.endswith(eos) else eos)
        start = len(bos) if self.train_on == "all" else len(bos) + len(prompt)
        return text, [(start, len(text))]

    @cached_property
    def _eos(self) -> str:
        """The tokenizer's end token."""
        if self.tokenizer.eos_token is None:
            raise UserError(
                "The tokenizer has no end token (eos_token), so that the model could never learn to stop. Set "
                "tokenizer.eos_token."
            )
        return str(self.tokenizer.eos_token)

    @cached_property
    def _bos(self) -> str:
        """The begin token where the tokenizer adds it by itself, else ""."""
        bos = self.tokenizer.bos_token_id
        return str(self.tokenizer.bos_token) if bos is not None and self.tokenizer("a").input_ids[0] == bos else ""

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _tokenize(self, text: str, spans: Sequence[Span]) -> Encoded:
        """Tokenise ``text`` so that each span begins and ends between two tokens.

        A generating model reads the tokens of the text before a span, then writes. So the ids of the whole text must
        begin with the ids of every such prefix; where a tokenizer merges across a boundary, the pieces are tokenised
        on their own, and the result must still decode to the text.
        """
        ids = self._ids(text)
        cuts = sorted({cut for span in spans for cut in span if 0 < cut < len(text)})
        positions = {0: 0, len(text): len(ids)}
        for cut in cuts:
            prefix = self._ids(text[:cut])
            if ids[: len(prefix)] != prefix:
                ids, positions = self._pieces(text, ids, cuts)
                break
            positions[cut] = len(prefix)
        trained = np.zeros(len(ids), np.bool_)
        for start, end in spans:
            trained[positions[start] : positions[end]] = True
        return Encoded(np.array(ids, np.int32), trained)

    def _pieces(self, text: str, whole: list[int], cuts: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        """Return ids, and the position of each cut, of the pieces of ``text`` tokenised one by one.

        Tokenizers of the SentencePiece kind put a space before each text; after a line break they do not.
        """
        bounds = [0, *cuts, len(text)]
        pieces = [text[start:end] for start, end in pairwise(bounds)]
        for tokenize in (self._ids, self._ids_inside):
            parts = [self._ids(pieces[0]), *map(tokenize, pieces[1:])]
            ids = [token for part in parts for token in part]
            if self.tokenizer.decode(ids) == self.tokenizer.decode(whole):
                return ids, dict(zip(bounds, accumulate(map(len, parts), initial=0), strict=True))
        at = text[max(cuts[0] - 10, 0) : cuts[0] + 10]
        raise BadRowError(f"the tokenizer cannot keep prompt and answer apart (near {at!r})")

    def _ids_inside(self, text: str) -> list[int]:
        """Return the ids of ``text`` as of a piece that does not begin a text."""
        before, both = self._ids("\n"), self._ids("\n" + text)
        return both[len(before) :] if both[: len(before)] == before else self._ids(text)


_NO_TEMPLATE = (
    "The tokenizer has no chat template, and {}. Use an instruction-tuned model's tokenizer, give the tokenizer a "
    "template (`tokenizer.chat_template = ...`), or use prompt/completion strings with apply_chat_template: never."
)
