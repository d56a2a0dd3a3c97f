"""How far a prediction has moved from an earlier one: Kullback-Leibler divergence and changed first choices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_sft.metrics.wide import wide

#: positions whose divergence is computed at a time: a few rows of the vocabulary stay in a processor's cache
BLOCK = 8


class StoredDistribution(NamedTuple):
    """Next-token distributions by their k most likely tokens.

    Attributes:
        tokens: ids of the k most likely tokens, most likely first, (positions, k), int32.
        logp: their log-probabilities in nats, (positions, k), fp32.
        tail: log of the probability of all other tokens together, (positions,), fp32; -inf if there are none.
    """

    tokens: Tensor
    logp: Tensor
    tail: Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log-probabilities over the vocabulary, (positions, vocab), in at least fp32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits - logits.logsumexp(-1, keepdim=True)  # log_softmax loses digits over large vocabularies


def store(logp: Tensor, k: int) -> StoredDistribution:
    """Keep the k most likely tokens of each distribution and the mass of the rest.

    Args:
        logp: log-probabilities, (positions, vocab).
        k: how many tokens to keep; the vocabulary at most.
    """
    values, tokens = logp.topk(min(k, logp.shape[-1]), dim=-1)
    rest = torch.log1p(-values.double().exp().sum(-1).clamp_max(1.0)).to(values.dtype)
    return StoredDistribution(tokens.to(torch.int32), values, rest)


def kl_divergence(before: Tensor, now: Tensor) -> Tensor:
    """Return KL(before || now) in nats, (positions,), float64.

    Args:
        before: log-probabilities, (positions, vocab).
        now: the same, of the later model.
    """
    parts = []
    for first, second in zip(before.split(BLOCK), now.split(BLOCK), strict=True):
        terms = (first - second).mul_(first.exp()).nan_to_num_(nan=0.0)  # 0 * (-inf - -inf) is 0
        parts.append(wide(terms).sum(-1))
    return torch.cat(parts)


def kl_lower_bound(before: StoredDistribution, now: Tensor) -> Tensor:
    """Return a lower bound of KL(before || now) in nats, (positions,), float64.

    The tokens that were not kept count as one: by the log-sum inequality that never raises the divergence. With all
    tokens kept it is the divergence itself.

    Args:
        before: the stored distributions.
        now: log-probabilities of the later model, (positions, vocab).
    """
    kept = now.gather(-1, before.tokens.long())
    head = wide((before.logp.exp() * (before.logp - kept)).nan_to_num(nan=0.0)).sum(-1)
    tail_now = torch.log1p(-wide(kept).exp().sum(-1).clamp_max(1.0)).clamp_min(-80.0)
    tail = wide(before.tail)
    rest = (tail.exp() * (tail - tail_now)).nan_to_num(nan=0.0)
    return head + rest
