"""EAFT: NLL weighted by how undecided the model is."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.scores import TokenScores


class EAFT(Objective):
    """Entropy-adaptive fine-tuning: NLL weighted by how undecided the model is.

    Formula:
        ``-sg((H_k / log k)^alpha) log p`` with H_k the entropy of the k likeliest candidates, renormalised among
        themselves (k is the vocabulary where that is smaller). The weight is 0 for a decided prediction, right or
        wrong, and 1 for a flat one.

    When:
        Against forgetting: tokens that the model contradicts with confidence no longer pull it away.

    Source:
        arXiv 2601.02151. Trainers that divide by 3.0 in place of log k, or by nothing, have another factor: see the
        table of names below.

    Args:
        k: how many candidates the entropy looks at, >= 2.
        alpha: the exponent of the weight, >= 0; 0 is NLL.

    Raises:
        UserError: ``k`` is below 2, or ``alpha`` is negative or not finite.
    """

    reads = "row"

    def __init__(self, k: int = 20, alpha: float = 1.0) -> None:
        super().__init__()
        if k < 2:
            raise UserError(f"EAFT got k={k}. Allowed: an integer >= 2 (one candidate alone has no entropy).")
        self.k = k
        self.alpha = in_range(self, "alpha", alpha, 0)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        with torch.no_grad():
            candidates = min(self.k, scores.require("logits").shape[-1])
            weight = (scores.topk_entropy(candidates) / math.log(candidates)).clamp(min=0.0) ** self.alpha
        return -weight * scores.logp

    @override
    def extra_repr(self) -> str:
        return f"k={self.k}" + ("" if self.alpha == 1 else f", alpha={self.alpha}")
