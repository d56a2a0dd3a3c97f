"""Which tokenizer a model is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from lightning_sft.models.loading import load_tokenizer


@dataclass(frozen=True)
class TokenizerSettings:
    """Everything that decides which tokenizer is loaded; see `load_tokenizer`."""

    name: str
    chat_template: str | None = None
    add_special_tokens: tuple[str, ...] = ()
    revision: str | None = None
    trust_remote_code: bool = False

    @classmethod
    def among(cls, given: Mapping[str, Any]) -> Self:
        """Pick them out of the arguments of `SFTModule`; ``revision`` is that of the model's own tokenizer alone."""
        model = given["model_name_or_path"]
        name = given["tokenizer_name_or_path"] or model
        return cls(
            name,
            given["chat_template"],
            tuple(given["add_special_tokens"] or ()),
            given["revision"] if name == model else None,
            given["trust_remote_code"],
        )

    def load(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer.

        Raises:
            UserError: there is no such tokenizer, or no such chat template.
        """
        return load_tokenizer(
            self.name,
            chat_template=self.chat_template,
            add_special_tokens=self.add_special_tokens,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )
