"""The power family: one number from NLL to -p and beyond."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores


class PowerFamily(Objective):
    """The power family ``(1 - p^alpha) / alpha``, s(p) = p^alpha.

    ``alpha = 0`` is NLL, ``alpha = 1`` is ``1 - p`` ("-p"), ``alpha = 10`` has the gradient direction of "-p^10".
    Equal to generalized cross entropy with q = alpha. Source: Li et al., "Beyond Log Likelihood", arXiv 2510.00526,
    section 3; Zhang and Sabuncu, arXiv 1805.07836.

    Args:
        alpha: the exponent, >= 0. Larger values lean more on what the model already believes.

    Raises:
        UserError: ``alpha`` is negative or not finite.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(alpha) or alpha < 0:
            raise UserError(f"PowerFamily got alpha={alpha}. Allowed: a finite number >= 0 (0 is NLL, 1 is -p).")
        self.alpha = float(alpha)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        if self.alpha == 0:
            return -scores.logp
        return -torch.expm1(self.alpha * scores.logp) / self.alpha

    @override
    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
