"""One example -> token ids and the mask of what is trained. The single place where text becomes tokens."""

from __future__ import annotations

import datetime
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.masks import Masks
from lightning_sft.data.encoding.template import ChatTemplate, Span
from lightning_sft.data.encoding.tokens import SpanTokenizer
from lightning_sft.data.encoding.trace import OnDroppedReasoning, last_of
from lightning_sft.data.encoding.weights import LossWeights, Weighted, of_messages
from lightning_sft.data.storage.digests import tokenizer_digest
from lightning_sft.data.types import SPANS, BadRowError, Encoded, Example, MaskFrom
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
        template_kwargs: variables for the template; a row's own are put over them.
        on_dropped_reasoning: what to do with a row whose reasoning the template does not write: ``error`` makes it a
            bad row, ``allow`` trains it without. Reasoning of past answers may always be left out by a template that
            writes that of the last one.
        loss_weights: weights of prompts and answers in the loss.

    Raises:
        UserError: ``always``, and the tokenizer has no chat template; or prompts have a weight and are not trained.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        train_on: TrainOn = "assistant",
        apply_chat_template: ApplyChatTemplate = "auto",
        template_kwargs: dict[str, Any] | None = None,
        on_dropped_reasoning: OnDroppedReasoning = "error",
        loss_weights: LossWeights | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.on_dropped_reasoning = on_dropped_reasoning
        self.loss_weights = loss_weights or LossWeights()
        if self.loss_weights.prompt != 1.0 and train_on != "all":
            raise UserError(
                f"data.loss_weights.prompt is {self.loss_weights.prompt} with data.train_on: {train_on}, under which "
                "prompts are not trained. Set data.train_on: all, or leave it out."
            )
        self.template = ChatTemplate(tokenizer, template_kwargs)
        self.tokenize = SpanTokenizer(self.template)
        self._masks: dict[str, Masks] = {}
        if apply_chat_template == "always" and not self.template.source:
            raise UserError(_NO_TEMPLATE.format("apply_chat_template: always was given"))
        self.templates_strings = apply_chat_template != "never" and bool(self.template.source)

    def identity(self) -> list[Any]:
        """Return what its results depend on besides the example, as plain data.

        Raises:
            TypeError: see `tokenizer_digest`.
        """
        # a template that writes today's date gives other tokens tomorrow
        today = str(datetime.date.today()) if self.template.tells_the_date else None
        tokenizer = tokenizer_digest(self.tokenizer)
        kwargs = self.template.kwargs
        weights = [self.loss_weights.prompt, self.loss_weights.answer]
        return [tokenizer, self.train_on, self.templates_strings, kwargs, self.on_dropped_reasoning, today, weights]

    def __call__(self, example: Example) -> Encoded:
        """Return the ids of ``example`` and which of them are trained.

        Raises:
            BadRowError: the row cannot be rendered or tokenised exactly, or nothing of it would be trained.
            UserError: the row is a conversation, and the tokenizer has no chat template.
        """
        if not example.has_answer:
            ids = self.prompt(example)[1]
            return Encoded(np.array(ids, np.int32), np.zeros(len(ids), np.bool_))
        text, spans, mask, weighted = self._templated(example) if self._is_templated(example) else self._plain(example)
        if example.weight != 1.0:
            weighted = [*weighted, ((0, len(text)), example.weight)]
        encoded = self.tokenize(text, spans, mask, weighted)
        if not encoded.trained.any():
            raise BadRowError(
                f"nothing would be trained: train_on={self.train_on!r} and the row's flags select no token. Change "
                "them, or leave the row out.",
                Code.NOTHING_TRAINED,
            )
        return encoded

    def prompt(self, example: Example) -> tuple[str, list[int]]:
        """Return text and ids of what stands before the answer.

        Raises:
            BadRowError: the template does not take or does not write all of it.
        """
        if self._is_templated(example):
            before = example.messages[:-1] if example.has_answer else example.messages
            text = self._masks_for(example).prompt(before, example.tools, checked=example.has_answer)
        else:
            assert example.plain is not None
            text = self._begun(example.plain[0])
        return text, self.tokenize.ids(text)

    def _is_templated(self, example: Example) -> bool:
        if example.plain is not None:
            return self.templates_strings and bool(example.messages)
        if not self.template.source:
            raise UserError(_NO_TEMPLATE.format(f"{example.where} is a conversation"))
        return True

    def _masks_for(self, example: Example) -> Masks:
        """Return what renders a row: rows may bring variables of their own for the template."""
        key = json.dumps(example.template_kwargs, sort_keys=True, default=repr)
        if key not in self._masks:
            template = self.template
            if example.template_kwargs:
                template = ChatTemplate(self.tokenizer, {**self.template.kwargs, **example.template_kwargs})
            self._masks[key] = Masks(template, self.on_dropped_reasoning)
        return self._masks[key]

    def _templated(self, example: Example) -> tuple[str, list[Span], MaskFrom, list[Weighted]]:
        masks = self._masks_for(example)
        if self.train_on == "all":
            left_out = [i for i, flag in enumerate(example.flags) if flag is not None and not flag]
            text, spans = masks.all_but(example, left_out)
            weighted = self._weighted_answers(masks, example)
            return (*(self._ended(text, spans) if spans else (text, spans)), MaskFrom.TURNS, weighted)
        chosen = [i for i in range(len(example.messages)) if self._is_trained(example, i)]
        text, spans, owners, mask = masks.spans(example, chosen)
        if chosen and chosen[-1] == len(example.messages) - 1:
            text, spans = self._ended(text, spans)
        weighted = of_messages(example, text, spans, owners)
        if self.loss_weights.answer != 1.0:
            weighted += [(span, self.loss_weights.answer) for span in spans]
        return text, spans, mask, weighted

    def _weighted_answers(self, masks: Masks, example: Example) -> list[Weighted]:
        """Return the weights of a row of which everything is trained: of its answers, and of all that is none."""
        answer, prompt = self.loss_weights.answer, self.loss_weights.prompt
        answers = [i for i, m in enumerate(example.messages) if m["role"] == "assistant" and example.flags[i] != 0]
        weighs = any(SPANS in example.messages[i] or example.flags[i] not in (None, True) for i in answers)
        if not weighs and answer == prompt == 1.0:
            return []
        text, spans, owners, _ = masks.spans(example, answers)
        text, spans = self._ended(text, spans)
        weighted = of_messages(example, text, spans, owners) + [(span, answer) for span in spans]
        cuts = [0, *(place for span in spans for place in span), len(text)]
        between = [(start, end) for start, end in zip(cuts[::2], cuts[1::2], strict=True) if start < end]
        return weighted + [(span, prompt) for span in between]

    def _ended(self, text: str, spans: list[Span]) -> tuple[str, list[Span]]:
        """Make sure that the last turn's end is trained: the template's end token, or else the tokenizer's own."""
        special = self.template.special_tokens
        if not spans or text[: spans[-1][1]].rstrip().endswith(special):
            return text, spans
        if text.rstrip().endswith(special):
            raise BadRowError(
                "the end of the last turn would not be trained: the template's generation markers leave it out. Move "
                "{% endgeneration %} behind the token that ends the turn, or take the markers out of the template.",
                Code.MARKERS,
            )
        return text + self._eos, [*spans[:-1], (spans[-1][0], len(text) + len(self._eos))]

    def _is_trained(self, example: Example, index: int) -> bool:
        flag = example.flags[index]
        if flag is not None:
            return bool(flag)
        if example.messages[index]["role"] != "assistant":
            return False
        if self.train_on == "last_turn" or (self.train_on == "completion" and not example.prompt_messages):
            return index > last_of("user", example.messages)
        return index >= example.prompt_messages

    def _plain(self, example: Example) -> tuple[str, list[Span], MaskFrom, list[Weighted]]:
        assert example.plain is not None
        prompt, completion = example.plain
        begun = self._begun(prompt + completion)
        text = begun if begun.rstrip().endswith(self._eos) else begun + self._eos
        start = begin = len(begun) - len(completion)
        if self.train_on == "all" or not prompt:
            start = len(self._bos) if self._bos and begun.startswith(self._bos) else 0
        parts = (((0, begin), self.loss_weights.prompt), ((begin, len(text)), self.loss_weights.answer))
        weighted = [(span, weight) for span, weight in parts if span[0] < span[1] and weight != 1.0]
        inside = (prompt + completion).removeprefix(self._bos).rstrip().removesuffix(self._eos)
        control = self.template.special.search(inside) is not None
        mask = MaskFrom.ROW_WITH_CONTROL_TOKENS if control else MaskFrom.ROW
        return text, [(start, len(text))], mask, weighted

    def _begun(self, text: str) -> str:
        """Return plain text behind the begin token, if the tokenizer adds one; one that stands there is enough."""
        return text if text.startswith(self._bos) else self._bos + text

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


_NO_TEMPLATE = (
    "The tokenizer has no chat template, and {}. Use an instruction-tuned model's tokenizer, give the tokenizer a "
    "template (`tokenizer.chat_template = ...`), or use prompt/completion strings with apply_chat_template: never."
)
