"""Hidden states, unembedding and targets in; token scores, losses and the gradient out."""

from lightning_sft.head.reference import plain_logits, reference_head
from lightning_sft.head.types import HeadInput, HeadOutput, Unembedding

__all__ = ["HeadInput", "HeadOutput", "Unembedding", "plain_logits", "reference_head"]
