"""Dynamic fine-tuning: NLL weighted by the model's own confidence."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.scores import TokenScores


class DFT(Objective):
    """Dynamic fine-tuning: NLL weighted by the model's own confidence.

    Formula:
        ``-sg(max(p, floor)) log p``; s(p) = max(p, floor). Without a floor, the default: the gradient of ``1 - p``
        exactly, with another value on the curve.

    When:
        As the power family with alpha = 1, under the name and with the loss value that other trainers print.

    Source:
        Wu et al., "On the Generalization of SFT", arXiv 2508.05629. Its author recommends a floor of 0.1 to users whose
        models do not learn to stop.

    Args:
        floor: the least that s(p) may be, in [0, 1].

    Raises:
        UserError: ``floor`` is out of range.
    """

    def __init__(self, floor: float = 0.0) -> None:
        super().__init__()
        self.floor = in_range(self, "floor", floor, 0, 1)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return -scores.p.detach().clamp(min=self.floor) * scores.logp

    @override
    def extra_repr(self) -> str:
        return f"floor={self.floor}" if self.floor else ""
