"""Any objective on the likely or on the unlikely tokens only."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.composite import Composite
from lightning_sft.objectives.histogram import load_histogram, percentile_of
from lightning_sft.objectives.nll import NLL
from lightning_sft.scores import TokenScores


class Thresholded(Composite):
    """Any objective on the likely ("top") or on the unlikely ("bottom") tokens only.

    Formula:
        ``base * 1[p >= q]`` (top) or ``base * 1[p <= q]`` (bottom), both inclusive; s(p) is the base's times the same
        mask, which compares the current model's p and carries no gradient. A fused head skips the masked rows.

    When:
        Top: a strong model and noisy answers; q = 0.1 drops tokens that the model finds unlikely. Bottom: to see what
        the hard tokens alone do. With ``denominator: kept`` the run divides by the tokens that are left.

    Source:
        Li et al., "Beyond Log Likelihood", arXiv 2510.00526; by percentile: their figure 5. Their code divides by the
        kept tokens of a micro-batch; ``denominator: kept`` divides by those of the whole optimizer step.

    Args:
        base: the objective of the tokens that are left; NLL by default.
        keep: ``"top"`` or ``"bottom"``.
        threshold: q, in [0, 1].
        percentile: q as a percentile, in [0, 100], of the base model's p over the training set; needs ``histogram``.
        histogram: file of the measured histogram, see `save_histogram`.

    Raises:
        UserError: a value is out of range, not exactly one of ``threshold`` and ``percentile`` is given, or a
            percentile comes without a readable histogram.
    """

    def __init__(
        self,
        base: Objective | None = None,
        keep: Literal["top", "bottom"] = "top",
        threshold: float | None = None,
        percentile: float | None = None,
        histogram: str | Path | None = None,
    ) -> None:
        super().__init__({"base": NLL() if base is None else base})
        if keep not in ("top", "bottom"):
            raise UserError(f'Thresholded got keep={keep!r}. Allowed: "top", "bottom".')
        self.keep = keep
        if (threshold is None) == (percentile is None):
            given = "neither" if threshold is None else "both"
            raise UserError(f"Thresholded needs exactly one of `threshold` and `percentile`, and got {given}.")
        if threshold is not None:
            if histogram is not None:
                raise UserError(
                    "Thresholded got a histogram and a threshold. Give `percentile` instead of `threshold`."
                )
            self.threshold = in_range(self, "threshold", threshold, 0, 1)
        else:
            self.threshold = self._measured(percentile or 0.0, histogram)

    def _measured(self, percentile: float, histogram: str | Path | None) -> float:
        percentile = in_range(self, "percentile", percentile, 0, 100)
        if histogram is None:
            raise UserError(
                f"Thresholded got percentile={percentile} without a histogram to take it from. Give `histogram`, the "
                "file of a measured one (see lightning_sft.objectives.save_histogram), or `threshold`, a probability."
            )
        return percentile_of(*load_histogram(histogram), percentile)

    def _inside(self, scores: TokenScores) -> Tensor:
        p = scores.p.detach()
        return p >= self.threshold if self.keep == "top" else p <= self.threshold

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        losses: Tensor = self.parts[0](scores)
        return torch.where(self._inside(scores), losses, 0.0)

    @override
    def kept(self, scores: TokenScores) -> Tensor:
        return self._inside(scores) & super().kept(scores)

    @override
    def mask(self) -> str:
        own = f"p {'>=' if self.keep == 'top' else '<='} {self.threshold}"
        return own if super().mask() == "all" else f"{own} and {super().mask()}"

    @override
    def logged(self) -> dict[str, Tensor | float]:
        return super().logged() | {"threshold": self.threshold}

    @override
    def extra_repr(self) -> str:
        return f"keep={self.keep}, threshold={self.threshold}"
