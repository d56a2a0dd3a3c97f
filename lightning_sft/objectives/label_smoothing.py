"""Label smoothing around any objective."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.composite import Composite
from lightning_sft.objectives.nll import NLL
from lightning_sft.scores import TokenScores


class LabelSmoothing(Composite):
    """Label smoothing: a share of the target is spread evenly over the vocabulary.

    Formula:
        ``(1 - e) base + e mean_v(-log p_v)``, both with gradient. With base NLL: cross entropy against smoothed
        labels.

    When:
        Calibrated probabilities matter, or the labels are known to be noisy.

    Source:
        Szegedy et al., arXiv 1512.00567, section 7.

    Args:
        base: the objective of the target; NLL by default.
        smoothing: e, in [0, 1].

    Raises:
        UserError: ``smoothing`` is out of range, or the base reads the whole batch.
    """

    reads = "row"

    def __init__(self, base: Objective | None = None, smoothing: float = 0.1) -> None:
        super().__init__({"base": NLL() if base is None else base})
        self.smoothing = in_range(self, "smoothing", smoothing, 0, 1)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        losses: Tensor = self.parts[0](scores)
        return (1.0 - self.smoothing) * losses - self.smoothing * scores.mean_logp()

    @override
    def extra_repr(self) -> str:
        return f"smoothing={self.smoothing}"
