"""Which tokenizer a data module encodes with."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from lightning_sft.errors import UserError
from lightning_sft.hub import require_on_hub


def find_tokenizer(given: Any, trainer: Trainer | None) -> Any:
    """Return the tokenizer that was given, by itself or by its name or folder, or the LightningModule's own.

    Args:
        given: a tokenizer, the name or folder of one, or None.
        trainer: whose module may have an attribute ``tokenizer``.

    Raises:
        UserError: there is none.
    """
    if isinstance(given, str):
        from transformers import AutoTokenizer

        require_on_hub(given)
        return AutoTokenizer.from_pretrained(given)
    if given is not None:
        return given
    tokenizer = getattr(trainer and trainer.lightning_module, "tokenizer", None)
    if tokenizer is None:
        raise UserError(
            "SFTDataModule has no tokenizer: none was given, and the LightningModule has no attribute `tokenizer`. "
            "Pass SFTDataModule(tokenizer=...), a tokenizer or its name."
        )
    return tokenizer


def pad_token_id(tokenizer: Any) -> int:
    """Return what fills short rows up: any id will do where there is no pad token, as masks never look at it."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(i) for i in ids if i is not None)
