"""Dynamic fine-tuning: NLL weighted by the model's own confidence."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores


class DFT(Objective):
    """Dynamic fine-tuning: NLL weighted by the model's own confidence.

    Formula:
        ``-sg(p) log p``; s(p) = p: the gradient of ``1 - p`` exactly, with another value on the curve.

    When:
        As the power family with alpha = 1, under the name and with the loss value that other trainers print.

    Source:
        Wu et al., "On the Generalization of SFT", arXiv 2508.05629.
    """

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return -scores.p.detach() * scores.logp
