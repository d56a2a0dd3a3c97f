"""Hidden states, unembedding and targets in; token scores, losses and the gradient out."""

from lightning_sft.head.delegated import delegated_head, refusal
from lightning_sft.head.fused import fused_head
from lightning_sft.head.reference import plain_logits, reference_from_logits, reference_head
from lightning_sft.head.select import HeadKind, choose_head
from lightning_sft.head.types import HeadInput, HeadOutput, Unembedding

__all__ = [
    "HeadInput",
    "HeadKind",
    "HeadOutput",
    "Unembedding",
    "choose_head",
    "delegated_head",
    "fused_head",
    "plain_logits",
    "reference_from_logits",
    "reference_head",
    "refusal",
]
