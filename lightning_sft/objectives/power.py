"""The power family: one number from NLL to -p and beyond."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.exact import one_minus_power
from lightning_sft.scores import TokenScores

# below it, (1 - p^alpha) / alpha and -log p differ by less than fp32 can tell, and 1 / alpha may overflow
NEARLY_NLL = 1e-12


class PowerFamily(Objective):
    """The power family: one number leads from NLL to -p and beyond.

    Formula:
        ``(1 - p^alpha) / alpha``; s(p) = p^alpha. ``alpha = 0`` is NLL, ``alpha = 1`` is ``1 - p`` ("-p"),
        ``alpha = 10`` has the gradient direction of "-p^10". W(p) peaks at p = alpha / (1 + alpha). With a floor
        s(p) = max(p^alpha, floor): where p^alpha is below it, the loss goes on as ``-floor log p``, without a step.

    When:
        ``alpha = 1`` or more where the model is strong on the task before training, a small one (0.1) or 0 where it is
        weak; the choice to sweep first.

    Source:
        Li et al., "Beyond Log Likelihood", arXiv 2510.00526, section 3; equal to the generalized cross entropy of
        Zhang and Sabuncu, arXiv 1805.07836, with q = alpha.

    Args:
        alpha: the exponent, >= 0. Larger values lean more on what the model already believes.
        floor: the least that s(p) may be, in [0, 1]; 0.1 lets a model learn tokens that it considers impossible,
            such as the end of a turn that it has never seen.

    Raises:
        UserError: ``alpha`` is negative or not finite, or ``floor`` is out of range.
    """

    def __init__(self, alpha: float = 1.0, floor: float = 0.0) -> None:
        super().__init__()
        self.alpha = in_range(self, "alpha", alpha, 0)
        self.floor = in_range(self, "floor", floor, 0, 1)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        if self.alpha < NEARLY_NLL:
            return -scores.logp
        losses = one_minus_power(scores.logp, self.alpha) / self.alpha
        if self.floor == 0:
            return losses
        turn = math.log(self.floor) / self.alpha  # the log p where p^alpha is the floor
        below = (1.0 - self.floor) / self.alpha + self.floor * (turn - scores.logp)
        return torch.where(scores.logp.detach() < turn, below, losses)

    @override
    def extra_repr(self) -> str:
        return f"alpha={self.alpha}" + (f", floor={self.floor}" if self.floor else "")


class Convexity(PowerFamily):
    """Another name of the power family, for configurations that come from the reference code.

    Formula:
        ``(1 - p^alpha) / alpha``; s(p) = p^alpha: the gradient of ``-p^alpha / alpha``.

    When:
        As the power family.

    Source:
        The code of Li et al., arXiv 2510.00526, where the loss lacks the constant ``1 / alpha``.

    Args:
        alpha: the exponent, >= 0.
        floor: the least that s(p) may be, in [0, 1].
    """
