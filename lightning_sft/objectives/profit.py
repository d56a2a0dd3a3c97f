"""ProFit: NLL on the tokens that the model already finds likely."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective, RunFacts
from lightning_sft.objectives.checks import in_range
from lightning_sft.scores import TokenScores


class ProFiT(Objective):
    """ProFit: NLL on the tokens that the model already finds likely, divided by all of them.

    Formula:
        ``-log p`` where sg(p) >= threshold, else 0; s(p) = 1[p >= threshold]. Dropped tokens still count in the
        denominator, so that dropping many of them slows the run down instead of pushing harder on the rest.

    When:
        A strong model and answers that could have been worded otherwise: unlikely tokens are mostly wording.

    Source:
        Liu et al., "ProFit: Leveraging High-Value Signals in SFT via Probability-Guided Token Selection",
        arXiv 2601.09195.

    Args:
        threshold: the probability from which on a token counts, in [0, 1]; 0.1 is their code's.

    Raises:
        UserError: ``threshold`` is out of range.
    """

    def __init__(self, threshold: float = 0.1) -> None:
        super().__init__()
        self.threshold = in_range(self, "threshold", threshold, 0, 1)

    @override
    def prepare(self, facts: RunFacts) -> None:
        super().prepare(facts)
        if facts.denominator == "kept":
            raise UserError(
                'ProFiT divides by all supervised tokens, and the run has denominator: "kept". Set denominator: "all", '
                f"or take Thresholded with base NLL and threshold {self.threshold}, which divides by the kept tokens."
            )

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return torch.where(scores.p >= self.threshold, -scores.logp, 0.0)

    @override
    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"
