"""Forgetting: how far the second model has moved from the first on text outside the task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_sft.guard.texts import GuardBatch, encode_texts, load_texts
from lightning_sft.metrics.drift import kl_divergence, log_probabilities
from lightning_sft.metrics.wide import wide
from lightning_sft.models.finished import FinishedModel
from lightning_sft.scores import IGNORED

MAX_LENGTH = 512
POSITIONS = 512


@dataclass(frozen=True)
class Forgetting:
    """A guard set under both models.

    Attributes:
        name: of the set.
        tokens: that are predicted.
        nll_before: mean negative log-likelihood under the first model, nats per token; None without one.
        nll: the same under the second.
        kl: mean of KL(first || second) over the whole vocabulary, nats per token; None without a first model.
        changed: share of tokens whose first choice is another; None without a first model.
    """

    name: str
    tokens: int
    nll_before: float | None
    nll: float
    kl: float | None
    changed: float | None


class GuardSet:
    """The texts of a guard set, encoded once for all models.

    Args:
        source: ``"general"``, or a file; see `load_texts`.
        tokenizer: that makes the ids.
    """

    def __init__(self, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = source if source == "general" else Path(source).stem
        texts = load_texts(source, self.name)
        self.batches = encode_texts(texts, tokenizer, self.name, max_length=MAX_LENGTH, positions=POSITIONS)


@torch.no_grad()
def read_guard(model: FinishedModel, batch: GuardBatch) -> Tensor:
    """Return the log-probabilities that predict the labels, (positions, vocab), in at least fp32."""
    batch = batch.to(model.device)
    output = model.causal_lm(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return log_probabilities(output.logits[:, :-1][batch.labels[:, 1:] != IGNORED])


def read_forgetting(model: FinishedModel, guard: GuardSet, first: Iterator[Tensor] | None = None) -> Forgetting:
    """Read a guard set with the second model, and compare.

    Where the two models' vocabularies differ in length, by rows of padding, the divergence is over the shorter one.

    Args:
        model: the second.
        guard: the set.
        first: the first model's log-probabilities of each batch, (positions, vocab), in order.
    """
    tokens, nll, nll_before, kl, changed = 0, 0.0, 0.0, 0.0, 0
    for batch in guard.batches:
        now = read_guard(model, batch)
        shifted = batch.labels[:, 1:]
        targets = shifted[shifted != IGNORED].to(now.device)[:, None]
        tokens += len(targets)
        nll -= float(wide(now.gather(1, targets)).sum())
        if first is not None:
            before = next(first).to(now.device)
            nll_before -= float(wide(before.gather(1, targets)).sum())
            size = min(before.shape[1], now.shape[1])
            kl += float(kl_divergence(before[:, :size], now[:, :size]).sum())
            changed += int((before.argmax(1) != now.argmax(1)).sum())
    if first is None:
        return Forgetting(guard.name, tokens, None, nll / tokens, None, None)
    return Forgetting(guard.name, tokens, nll_before / tokens, nll / tokens, kl / tokens, changed / tokens)
