"""Samples that depend on their own seeds alone: not on the batch, the ranks or the global random state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor
from typing_extensions import override

from lightning_sft.metrics.wide import wide


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    Attributes:
        temperature: what logits are divided by, above 0.
        seeds: one for each answer.
    """

    temperature: float
    seeds: Sequence[int]

    def of(self, chosen: Sequence[int]) -> Sampling:
        """Return the same for some of the answers."""
        return Sampling(self.temperature, [self.seeds[i] for i in chosen])


class Draws(LogitsProcessor):
    """Leaves one token of each row, drawn from softmax(logits / temperature) by inverting its distribution function.

    Args:
        sampling: temperature, and a seed for each row.
        length: most tokens of an answer.
        start: position of the first answered token.
    """

    def __init__(self, sampling: Sampling, length: int, start: int) -> None:
        uniform = [
            torch.rand(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
            for seed in sampling.seeds
        ]
        self._uniform = torch.stack(uniform)
        self._temperature = sampling.temperature
        self._start = start

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        summed = torch.softmax(wide(scores) / self._temperature, dim=-1).cumsum(-1)
        total = summed[:, -1:]
        uniform = self._uniform[:, input_ids.shape[1] - self._start, None].to(total.device)
        drawn = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
        # the first token whose sum is above the draw has a part of its own in it
        token = torch.searchsorted(summed, drawn, right=True).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class Entropies(LogitsProcessor):
    """Keeps the entropy of each prediction, in nats, and changes nothing."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        logp = torch.log_softmax(scores.float(), dim=-1)
        self._seen.append(-(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1))
        return scores

    def rows(self) -> list[list[float]]:
        """Return the entropies of each row's predictions, in their order."""
        rows: list[list[float]] = torch.stack(self._seen, dim=1).tolist()
        return rows
