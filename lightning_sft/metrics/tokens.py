"""Token averages: loss, NLL, perplexity, accuracy and mean p over all tokens of a data set, exact over ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.metrics.wide import WideMetric, wide
from lightning_sft.scores import TokenScores


class TokenAverages(WideMetric):
    """Averages over supervised tokens, from sums in float64, so that any split of the data gives the same values.

    ``compute`` returns scalars ``loss`` (under the objective), ``nll`` (nats per token), ``perplexity``,
    ``token_accuracy`` (the target is the strongest candidate) and ``mean_p`` (arithmetic mean of the target's
    probability: the place on the capability continuum); all nan when no token was seen.
    """

    full_state_update = False
    loss: Tensor
    nll: Tensor
    p: Tensor
    hits: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "nll", "p", "hits", "tokens"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, losses: Tensor, scores: TokenScores) -> None:
        """Add the tokens of one batch: ``losses`` (tokens,) and the scores a head returned."""
        self.loss += wide(losses).sum()
        self.nll -= wide(scores.logp).sum()
        self.p += wide(scores.logp.exp()).sum()
        self.hits += wide(scores.require("is_top1")).sum()
        self.tokens += len(scores)

    @override
    def compute(self) -> dict[str, Tensor]:
        nll = self.nll / self.tokens
        return {
            "loss": self.loss / self.tokens,
            "nll": nll,
            "perplexity": nll.exp(),
            "token_accuracy": self.hits / self.tokens,
            "mean_p": self.p / self.tokens,
        }
