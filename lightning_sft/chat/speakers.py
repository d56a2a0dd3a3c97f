"""Who answers in a chat: a finished model, and beside it what it began as."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.types import BadRowError, Example, Message
from lightning_sft.errors import UserError
from lightning_sft.models.adapters_off import adapters_off
from lightning_sft.models.finished import FinishedModel, FoundModel
from lightning_sft.models.streaming import stream_answer
from lightning_sft.models.tuners import changes_base


@dataclass(frozen=True)
class Prompting:
    """How prompts are written, as the run wrote them.

    Attributes:
        system: system prompt; None for none.
        template_kwargs: variables for the chat template.
        apply_chat_template: whether strings are put into it: ``auto``, ``always`` or ``never``.
    """

    system: str | None = None
    template_kwargs: dict[str, Any] | None = None
    apply_chat_template: Any = "auto"


@dataclass
class Speaker:
    """A model in a chat, with its own side of the conversation.

    Attributes:
        label: what stands above its answers.
        model: finished.
        prompting: how its prompts are written.
        without_adapters: whether it answers with its adapters switched off.
        messages: so far.
    """

    label: str
    model: FinishedModel
    prompting: Prompting
    without_adapters: bool = False
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the encoder of prompts."""
        prompting = self.prompting
        self._encoder = Encoder(
            self.model.tokenizer,
            template_kwargs=prompting.template_kwargs,
            apply_chat_template=prompting.apply_chat_template,
            on_dropped_reasoning="allow",  # of answers that it has given itself
        )

    def forget(self) -> None:
        """Begin a new conversation."""
        self.messages = []

    def prompt(self, text: str) -> list[int]:
        """Return the ids of the conversation so far and a new message, up to where the answer begins.

        A tokenizer without a chat template continues the message as plain text, without what was said before.

        Raises:
            UserError: the chat template does not take the message.
        """
        if not self._encoder.templates_strings:
            return self._encoder.prompt(Example((), plain=(text, "")))[1]
        system = [] if self.prompting.system is None else [{"role": "system", "content": self.prompting.system}]
        try:
            return self._encoder.prompt(Example((*system, *self.messages, {"role": "user", "content": text})))[1]
        except BadRowError as error:
            raise UserError(f"The chat template does not take this: {error}") from error

    def answer(
        self,
        text: str,
        write: Callable[[str], None],
        options: dict[str, Any],
        when_cut: Callable[[], None] = lambda: None,
    ) -> str:
        """Write the answer to a message piece by piece, and keep both in the conversation.

        Args:
            text: what the user says.
            write: gets the pieces.
            options: of `stream_answer`.
            when_cut: see there.

        Raises:
            UserError: the conversation has grown too long, or the chat template does not take the message.
        """
        ids = self.prompt(text)
        with adapters_off(self.model.scorer) if self.without_adapters else nullcontext():
            answer = stream_answer(self.model.causal_lm, self.model.tokenizer, ids, write, when_cut=when_cut, **options)
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return answer


def switches_off(tuned: FoundModel) -> bool:
    """Return whether a model without its adapters is what it began as."""
    return tuned.settings.has_adapter and not changes_base(tuned.settings.adapter_config)


def find_speakers(
    tuned: FoundModel,
    before: FoundModel | None,
    prompting: Prompting,
    *,
    device: str | None = None,
    alone: bool = False,
) -> list[Speaker]:
    """Return the speakers of a chat, those to compare with first.

    An adapter is switched off for what it began as; other runs need a second model in memory.

    Args:
        tuned: the model to talk to.
        before: what to put beside it; None: the model without its adapters, where it has any.
        prompting: how the run wrote its prompts.
        device: where models are put; None: the accelerator, where there is one.
        alone: put nothing beside it.

    Raises:
        UserError: a model cannot be loaded.
    """
    model = tuned.load(device)
    speaker = Speaker("tuned", model, prompting)
    if alone:
        return [speaker]
    if before is None and switches_off(tuned):
        return [Speaker("base", model, prompting, without_adapters=True), speaker]
    if before is None:
        return [speaker]
    other = before.load(device)
    if other.tokenizer.chat_template is None:
        other.tokenizer.chat_template = model.tokenizer.chat_template
    return [Speaker("base", other, prompting), speaker]
