"""The log of one minus p: the most prior-leaning of the family."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.exact import one_minus_power
from lightning_sft.scores import TokenScores


class LogOneMinusP(Objective):
    """The log of one minus p ("unlikelihood", turned around): almost all force on what is nearly certain already.

    Formula:
        ``log(1 - p + eps)``; s(p) = p / (1 - p + eps), which reaches 1 / eps at p = 1. The loss is negative.

    When:
        A strongly prior-leaning end of comparison; rarely a first choice.

    Source:
        Li et al., "Beyond Log Likelihood", arXiv 2510.00526; eps = 1e-3 is that of their code.

    Args:
        eps: what keeps the logarithm finite at p = 1, > 0 and <= 1.

    Raises:
        UserError: ``eps`` is out of range.
    """

    def __init__(self, eps: float = 1e-3) -> None:
        super().__init__()
        self.eps = in_range(self, "eps", eps, 0, 1, open_low=True)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return torch.log(self.eps + one_minus_power(scores.logp))

    @override
    def extra_repr(self) -> str:
        return f"eps={self.eps}"
