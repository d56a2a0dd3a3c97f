"""TALR: token-adaptive weights whose temperature is the batch's own difficulty."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.sequences import sequence_means
from lightning_sft.scores import TokenScores

# Edges of the histogram of per-sequence mean NLL, in nats: geometric from 1e-4 to 1e2, neighbours 1.16% apart.
LOWEST, HIGHEST, BINS = 1e-4, 1e2, 1200


class TALR(Objective):
    """Token-adaptive weights: unlikely tokens weigh less, and the less so the harder the data.

    Formula:
        ``-sg(max(p^(1 / t), floor)) log p``, t = the median over sequences of their mean NLL; s(p) = max(p^(1/t),
        floor). t is that of the previous optimizer step, so that splitting a batch changes nothing; the first step
        uses its own. The median is read off a histogram summed over micro-batches and ranks: the mean of the
        sequences in the median's bin, off by at most 1.2% of itself within [1e-4, 100] nats and exact where the
        bin holds one sequence. Of an even number it is the mean of the two in the middle (``torch.median`` takes the
        lower one).

    When:
        Specialising a model without losing its general abilities.

    Source:
        arXiv 2509.20758.

    Args:
        floor: the smallest weight, in [0, 1].

    Raises:
        UserError: ``floor`` is out of range.
    """

    median: Tensor

    def __init__(self, floor: float = 0.01) -> None:
        super().__init__()
        self.floor = in_range(self, "floor", floor, 0, 1)
        # infinite until seeded: every weight is 1 then, which is NLL
        self.register_buffer("median", torch.tensor(math.inf))

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        weight = (scores.logp.detach() / self.median).exp().clamp(min=self.floor)
        return -weight * scores.logp

    @override
    def statistics(self, scores: TokenScores) -> dict[str, Tensor]:
        nll, _ = sequence_means(-scores.logp, scores.require("row"))
        place = (nll.clamp(min=LOWEST) / LOWEST).log() * (BINS / math.log(HIGHEST / LOWEST))
        bins = place.long().clamp(max=BINS - 1)
        counts = nll.new_zeros(BINS).index_add(0, bins, torch.ones_like(nll))
        return {"sequences": counts, "nll": nll.new_zeros(BINS).index_add(0, bins, nll)}

    @override
    def needs_seed(self) -> bool:
        return not bool(self.median.isfinite())

    @override
    def seed(self, sums: dict[str, Tensor]) -> None:
        counts, nll = sums["sequences"], sums["nll"]
        total = counts.sum()
        if total == 0:  # a step without a supervised token says nothing
            return
        reached = counts.cumsum(0)
        # the lower and the upper middle; the same for an odd number
        middles = [int((reached <= rank).sum()) for rank in ((total - 1) // 2, total // 2)]
        value = sum(nll[m] / counts[m] for m in middles) / 2
        self.median.copy_(torch.as_tensor(value).clamp(min=LOWEST))

    @override
    def update(self, sums: dict[str, Tensor]) -> None:
        self.seed(sums)

    @override
    def logged(self) -> dict[str, Tensor | float]:
        return {"median_nll": self.median}

    @override
    def extra_repr(self) -> str:
        return f"floor={self.floor}"
