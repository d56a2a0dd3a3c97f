"""DEFT: confidence weighting that trusts itself as far as the whole prediction is concentrated."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores


class DEFT(Objective):
    """Confidence weighting as strong as the whole prediction is concentrated.

    Formula:
        ``-sg(p^c) log p`` with the collision probability ``c = sum_v p_v^2``, without gradient. A flat prediction
        (c near 0) gives NLL, a sharp one (c near 1) gives DFT.

    When:
        Data where the model is strong on some tokens and lost on others, and one alpha will not do for both.

    Source:
        arXiv 2602.11424. Their code's loss is ``(1 - p^c) / (c + 1e-6)``, c without gradient: this gradient,
        to 1e-6 / c, and another value on the curve.
    """

    reads = "row"

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        with torch.no_grad():
            weight = (scores.collision() * scores.logp).exp()
        return -weight * scores.logp
