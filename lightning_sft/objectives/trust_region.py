"""Trust region: NLL for what the model half believes, less and less below."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.scores import TokenScores


class TrustRegion(Objective):
    """Trust region: NLL for what the model finds likely enough, and a pull that fades with p below.

    Formula:
        ``-log p`` where p >= alpha, else ``1 - p / alpha - log alpha``; s(p) = min(1, p / alpha). Loss and slope are
        continuous at alpha; towards alpha = 0 it is NLL, at alpha = 1 it is ``1 - p``.

    When:
        Unlikely tokens shall not tear at the model, while the others learn as fast as under NLL.

    Source:
        TrSFT, arXiv 2512.17636. The default alpha is ours.

    Args:
        alpha: the probability from which on a token pulls in full, in (0, 1].

    Raises:
        UserError: ``alpha`` is out of range.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        super().__init__()
        self.alpha = in_range(self, "alpha", alpha, 0, 1, open_low=True)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        inside = scores.p.detach() >= self.alpha
        outside = 1.0 - scores.p / self.alpha - math.log(self.alpha)
        return torch.where(inside, -scores.logp, outside)

    @override
    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
