"""Huber loss on one minus p."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.exact import one_minus_power
from lightning_sft.scores import TokenScores


class Huber(Objective):
    """Huber loss on the distance of p from 1: -p, with a soft landing.

    Formula:
        With x = 1 - p: ``x^2 / 2`` up to x = delta, ``delta (x - delta / 2)`` beyond; s(p) = p min(1 - p, delta).

    When:
        As -p, where tokens that are nearly certain should be left in peace as well. Its forces are up to delta times
        smaller than those of -p: mind the learning rate.

    Source:
        Named by Li et al., "Beyond Log Likelihood", arXiv 2510.00526; their code has none. With delta = 1 s(p) is
        p (1 - p), CHORD's phi (arXiv 2508.11408).

    Args:
        delta: where the square ends and the line begins, > 0; at 1 and beyond there is no line.

    Raises:
        UserError: ``delta`` is not a finite number > 0.
    """

    def __init__(self, delta: float = 0.5) -> None:
        super().__init__()
        self.delta = in_range(self, "delta", delta, 0, open_low=True)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        missing = one_minus_power(scores.logp)
        return torch.nn.functional.huber_loss(missing, torch.zeros_like(missing), reduction="none", delta=self.delta)

    @override
    def extra_repr(self) -> str:
        return f"delta={self.delta}"
