"""Importance-weighted fine-tuning: NLL, sequence by sequence weighted by how far the model has come."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.sequences import sequence_means
from lightning_sft.scores import TokenScores


class IWSFT(Objective):
    """Importance-weighted fine-tuning: sequences that the model has moved towards weigh more.

    Formula:
        ``-sg(w) log p`` with ``w = clamp(exp(mean_t(log p - log p_ref)), 0, max_weight)`` over the supervised tokens
        of the sequence (all its turns; a packed row holds several sequences).

    When:
        Curated data, where maximum likelihood is a bound on a reward that importance weights make tighter.

    Source:
        Qin and Springenberg, "Supervised Fine Tuning on Curated Data is Reinforcement Learning (and can be improved)",
        arXiv 2507.12856.

    Args:
        max_weight: the largest weight, > 0.

    Raises:
        UserError: ``max_weight`` is not a finite number > 0, or (at start) the run has no reference model.
    """

    reads = "batch"
    reference = "logp"

    def __init__(self, max_weight: float = 16.0) -> None:
        super().__init__()
        self.max_weight = in_range(self, "max_weight", max_weight, 0, open_low=True)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        with torch.no_grad():
            gain = scores.logp - scores.require("reference_logp").to(scores.logp.dtype)
            means, place = sequence_means(gain, scores.require("row"))
            weight = means.exp().clamp(max=self.max_weight)[place]
        return -weight * scores.logp

    @override
    def extra_repr(self) -> str:
        return f"max_weight={self.max_weight}"
