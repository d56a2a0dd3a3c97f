"""TailSFT: the sequences that have been learnt already step aside."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.quantile import counts, largest_from
from lightning_sft.objectives.sequences import sequence_means
from lightning_sft.scores import TokenScores


class TailSFT(Objective):
    """NLL without the sequences whose loss has dropped the furthest below where the reference model has it.

    Formula:
        ``-log p`` where ``d >= q``, else 0, with the lag ``d = mean_t(log p_ref - log p)`` of the token's sequence,
        without gradient. q is what all but the smallest ``fraction`` of the sequences of the previous optimizer step
        reached, so that splitting a batch changes nothing; the first step uses its own. It is read off a histogram
        summed over micro-batches and ranks, in bins 1% or 1e-4 nats wide; all of one bin stay, so that none steps
        aside before the model has moved.

    When:
        Rows of uneven difficulty: those that are learnt leave their place to the rest. The reference is the model
        before training. With ``denominator: kept`` the run divides by the tokens that are left, as the method does.

    Source:
        TailSFT, as TRL's example states its algorithm (pull request 7212): over a batch, drop the fraction of examples
        whose length-normalised loss fell the most against the initial policy's. Their share may also grow over the
        run, which is not offered here.

    Args:
        fraction: share of the sequences that step aside, in (0, 1).

    Raises:
        UserError: ``fraction`` is out of range, or (at start) the run has no reference model.
    """

    reads = "batch"
    reference = "logp"
    threshold: Tensor

    def __init__(self, fraction: float = 0.5) -> None:
        super().__init__()
        self.fraction = in_range(self, "fraction", fraction, 0, 1, open_low=True, open_high=True)
        # nan until seeded: every sequence is kept then, which is NLL
        self.register_buffer("threshold", torch.tensor(math.nan))

    def _lags(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        lag = scores.require("reference_logp").to(scores.logp.dtype) - scores.logp.detach()
        return sequence_means(lag, scores.require("row"))

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return torch.where(self.kept(scores), -scores.logp, 0.0)

    @override
    def kept(self, scores: TokenScores) -> Tensor:
        lags, place = self._lags(scores)
        return ~(lags < self.threshold)[place]

    @override
    def mask(self) -> str:
        return f"all but the {self.fraction:g} of the sequences that gained most on the reference"

    @override
    def statistics(self, scores: TokenScores) -> dict[str, Tensor]:
        return {"sequences": counts(self._lags(scores)[0])}

    @override
    def needs_seed(self) -> bool:
        return bool(self.threshold.isnan())

    @override
    def seed(self, sums: dict[str, Tensor]) -> None:
        total = sums["sequences"].sum()
        if total:  # a step without a supervised token says nothing
            stays = total - (self.fraction * total).floor()
            self.threshold.fill_(largest_from(sums["sequences"], stays))

    @override
    def update(self, sums: dict[str, Tensor]) -> None:
        self.seed(sums)

    @override
    def logged(self) -> dict[str, Tensor | float]:
        return {"threshold": self.threshold}

    @override
    def extra_repr(self) -> str:
        return f"fraction={self.fraction}"
