"""Whether models take several documents in one row: a must where rows are packed, a wish where they may be flat."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from lightning_sft.errors import UserError
from lightning_sft.models.attention import attention_of_parts
from lightning_sft.models.packing import attends_by_document, choose_attention, masks_everything
from lightning_sft.models.proofs import DocumentsMix, prove_documents_apart

NOT_ASKED = "the model was built without asking whether it keeps documents apart"


class DocumentRows:
    """What is asked of a run's models about documents in one row, and what was found out.

    Call `choose_attention` on a model as it was loaded, then `prove` with a small copy of it.

    Args:
        packed: whether rows hold several documents: an error where a model does not keep them apart.
        flat: whether rows may lie end to end.
        attention: the attention implementation that was asked for; None leaves the choice.

    Attributes:
        with_boundaries: whether the models must be told where documents end.
        flat_refusal: why flat batches would be wrong or slow; None where they are right.
    """

    def __init__(self, packed: bool, flat: bool, attention: str | None) -> None:
        self.packed, self.flat, self.attention = packed, flat, attention
        self.with_boundaries = False
        self.flat_refusal: str | None = NOT_ASKED

    @property
    def asked(self) -> bool:
        """Whether rows may hold several documents."""
        return self.packed or self.flat

    def choose_attention(self, model: PreTrainedModel) -> dict[str, Any]:
        """Set the attention that rows of several documents want; return what the model and its parts came with."""
        usual = attention_of_parts(model.config)
        if self.asked:
            choose_attention(model, self.attention)
        return usual

    def prove(self, model: PreTrainedModel, tried: PreTrainedModel | None, usual: dict[str, Any]) -> None:
        """Find out whether a model keeps documents apart; where it need not, give it its usual attention back.

        Args:
            model: after `choose_attention`.
            tried: a small copy of it; None if none can be made.
            usual: what `choose_attention` returned.

        Raises:
            UserError: rows are packed, and it does not.
        """
        if not self.asked:
            return
        try:
            self.with_boundaries = prove_documents_apart(model, tried)
            self.flat_refusal = None if attends_by_document(model) else masks_everything(model)
        except DocumentsMix as error:
            if self.packed:
                raise
            self.flat_refusal = error.why
        if self.flat_refusal is not None and not self.packed:
            model.set_attn_implementation(usual)

    def prove_reference(
        self, model: PreTrainedModel, tried: PreTrainedModel | None, usual: dict[str, Any], name: str
    ) -> None:
        """Find out whether a reference of another architecture keeps documents apart as the model does.

        Args:
            model: the reference, after `choose_attention`.
            tried: a small copy of it; None if none can be made.
            usual: what `choose_attention` returned.
            name: for messages.

        Raises:
            UserError: rows are packed, and it does not.
        """
        if not self.packed and self.flat_refusal is not None:
            if self.asked:
                model.set_attn_implementation(usual)
            return
        other = DocumentRows(self.packed, self.flat, self.attention)
        other.prove(model, tried, usual)
        why = other.flat_refusal
        if other.with_boundaries != self.with_boundaries:
            why = "its kernels keep documents of one row apart in another way than the model's"
            if self.packed:
                raise UserError(f"model.reference is {name!r}, and {why}. Set data.order: grouped in place of packed.")
        if why is not None:
            self.flat_refusal = f"model.reference is {name!r}, and {why}"
