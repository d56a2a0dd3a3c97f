"""Focal loss: less weight on tokens that are nearly certain."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.exact import one_minus_power
from lightning_sft.scores import TokenScores


class Focal(Objective):
    """Focal loss: less weight on tokens that are nearly certain, so that hard tokens dominate.

    Formula:
        ``-(1 - p)^gamma log p``; s(p) = (1 - p)^gamma - gamma p (1 - p)^(gamma - 1) log p.

    When:
        Weak models and rare tokens: it is prior-averse, the opposite direction of -p.

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002.

    Args:
        gamma: the exponent: 0 (NLL) or >= 1. Between them the derivative at p = 1 is infinite.

    Raises:
        UserError: ``gamma`` is negative, not finite, or between 0 and 1.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = in_range(self, "gamma", gamma, 0)
        if 0 < self.gamma < 1:
            raise UserError(
                f"Focal got gamma={gamma}. Allowed: 0, or a finite number >= 1; between them the gradient of a token "
                "with p = 1 is infinite."
            )

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        if self.gamma == 0:
            return -scores.logp
        return one_minus_power(scores.logp).pow(self.gamma) * -scores.logp

    @override
    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"
