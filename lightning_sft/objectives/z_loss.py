"""Z-loss on top of any objective."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.composite import Composite
from lightning_sft.objectives.nll import NLL
from lightning_sft.scores import TokenScores


class ZLoss(Composite):
    """Z-loss: keeps the log of the partition function near 0, on top of any objective.

    Formula:
        ``base + weight * logsumexp(z)^2``, with gradient.

    When:
        Long runs and large learning rates in bf16, where logits drift away together.

    Source:
        de Brebisson and Vincent, arXiv 1604.08859; Chowdhery et al. (PaLM), arXiv 2204.02311, section 5.

    Args:
        base: the objective it is added to; NLL by default.
        weight: >= 0.

    Raises:
        UserError: ``weight`` is negative or not finite, or the base reads the whole batch.
    """

    reads = "row"

    def __init__(self, base: Objective | None = None, weight: float = 1e-4) -> None:
        super().__init__({"base": NLL() if base is None else base})
        self.weight = in_range(self, "weight", weight, 0)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        losses: Tensor = self.parts[0](scores)
        return losses + self.weight * scores.logsumexp().square()

    @override
    def extra_repr(self) -> str:
        return f"weight={self.weight}"
