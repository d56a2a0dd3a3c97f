"""TailSFT: the sequences that have been learnt already step aside."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.lag_selection import LagSelection
from lightning_sft.objectives.sequences import sequence_means
from lightning_sft.scores import TokenScores


class TailSFT(LagSelection):
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

    def __init__(self, fraction: float = 0.5) -> None:
        super().__init__(fraction)

    @override
    def lags(self, scores: TokenScores) -> Tensor:
        return self._of_sequences(scores)[0]

    @override
    def stays(self, total: Tensor) -> Tensor:
        return total - (self.fraction * total).floor()

    @override
    def kept(self, scores: TokenScores) -> Tensor:
        lags, place = self._of_sequences(scores)
        return ~(lags < self.threshold)[place]

    @override
    def mask(self) -> str:
        return f"all but the {self.fraction:g} of the sequences that gained most on the reference"

    def _of_sequences(self, scores: TokenScores) -> tuple[Tensor, Tensor]:
        return sequence_means(self.token_lags(scores), scores.require("row"))
