"""Rho-1: NLL on the tokens that a reference model finds worth learning."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.quantile import counts, largest_from
from lightning_sft.scores import TokenScores


class Rho1(Objective):
    """Selective modelling: NLL on the tokens where the model lags behind a reference model the most.

    Formula:
        ``-log p`` where ``log p_ref - log p >= q``, else 0; no gradient through the choice. q is the value that the
        largest ``fraction`` of the tokens of the previous optimizer step reached, so that splitting a batch changes
        nothing; the first step uses its own. It is read off a histogram summed over micro-batches and ranks, in
        bins 1% or 1e-4 nats wide; all of one bin are kept, so that none is dropped before the model has moved.

    When:
        Noisy data, and a reference model that was trained on clean data of the same kind (``model.reference``). With
        ``denominator: kept`` the run divides by the chosen tokens, as the paper does.

    Source:
        Lin et al., "Rho-1: Not All Tokens Are What You Need", arXiv 2404.07965, which ranks the tokens of one batch.

    Args:
        fraction: share of the tokens that are kept, in (0, 1); their 0.6 for mathematics.

    Raises:
        UserError: ``fraction`` is out of range, or (at start) the run has no reference model.
    """

    reference = "logp"
    threshold: Tensor

    def __init__(self, fraction: float = 0.6) -> None:
        super().__init__()
        self.fraction = in_range(self, "fraction", fraction, 0, 1, open_low=True, open_high=True)
        # nan until seeded: every token is kept then, which is NLL
        self.register_buffer("threshold", torch.tensor(math.nan))

    def _excess(self, scores: TokenScores) -> Tensor:
        return scores.require("reference_logp").to(scores.logp.dtype) - scores.logp.detach()

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return torch.where(self.kept(scores), -scores.logp, 0.0)

    @override
    def kept(self, scores: TokenScores) -> Tensor:
        return ~(self._excess(scores) < self.threshold)

    @override
    def mask(self) -> str:
        return f"the {self.fraction:g} of the tokens with the largest log p_ref - log p"

    @override
    def statistics(self, scores: TokenScores) -> dict[str, Tensor]:
        return {"tokens": counts(self._excess(scores))}

    @override
    def needs_seed(self) -> bool:
        return bool(self.threshold.isnan())

    @override
    def seed(self, sums: dict[str, Tensor]) -> None:
        total = sums["tokens"].sum()
        if total:  # a step without a supervised token says nothing
            self.threshold.fill_(largest_from(sums["tokens"], (self.fraction * total).ceil()))

    @override
    def update(self, sums: dict[str, Tensor]) -> None:
        self.seed(sums)

    @override
    def logged(self) -> dict[str, Tensor | float]:
        return {"threshold": self.threshold}

    @override
    def extra_repr(self) -> str:
        return f"fraction={self.fraction}"
