"""Rho-1: NLL on the tokens that a reference model finds worth learning."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.lag_selection import LagSelection
from lightning_sft.scores import TokenScores


class Rho1(LagSelection):
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

    def __init__(self, fraction: float = 0.6) -> None:
        super().__init__(fraction)

    @override
    def lags(self, scores: TokenScores) -> Tensor:
        return self.token_lags(scores)

    @override
    def stays(self, total: Tensor) -> Tensor:
        return (self.fraction * total).ceil()

    @override
    def kept(self, scores: TokenScores) -> Tensor:
        return ~(self.token_lags(scores) < self.threshold)

    @override
    def mask(self) -> str:
        return f"the {self.fraction:g} of the tokens with the largest log p_ref - log p"
