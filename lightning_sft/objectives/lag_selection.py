"""What objectives share that train only on what lags behind a reference model."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.quantile import counts, largest_from
from lightning_sft.scores import TokenScores


class LagSelection(Objective):
    """NLL where the lag ``log p_ref - log p`` of a token, or of its sequence, is at least q; 0 elsewhere.

    q is a quantile of the previous optimizer step's lags, read off a histogram that is summed over micro-batches and
    ranks; the first step uses its own. It is the state of the objective.

    Args:
        fraction: share that `stays` is made of, in (0, 1).
    """

    reference = "logp"
    threshold: Tensor

    def __init__(self, fraction: float) -> None:
        super().__init__()
        self.fraction = in_range(self, "fraction", fraction, 0, 1, open_low=True, open_high=True)
        # nan until seeded: everything is kept then, which is NLL
        self.register_buffer("threshold", torch.tensor(math.nan))

    @abstractmethod
    def lags(self, scores: TokenScores) -> Tensor:
        """Return the lags that are ranked, (any,), without gradient."""

    @abstractmethod
    def stays(self, total: Tensor) -> Tensor:
        """Return how many of ``total`` are kept, scalar."""

    def token_lags(self, scores: TokenScores) -> Tensor:
        """Return the lag of each token, (tokens,), without gradient."""
        return scores.require("reference_logp").to(scores.logp.dtype) - scores.logp.detach()

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return torch.where(self.kept(scores), -scores.logp, 0.0)

    @override
    def statistics(self, scores: TokenScores) -> dict[str, Tensor]:
        return {"lags": counts(self.lags(scores))}

    @override
    def needs_seed(self) -> bool:
        return bool(self.threshold.isnan())

    @override
    def seed(self, sums: dict[str, Tensor]) -> None:
        total = sums["lags"].sum()
        if total:  # a step without a supervised token says nothing
            self.threshold.fill_(largest_from(sums["lags"], self.stays(total)))

    @override
    def update(self, sums: dict[str, Tensor]) -> None:
        self.seed(sums)

    @override
    def logged(self) -> dict[str, Tensor | float]:
        return {"threshold": self.threshold}

    @override
    def extra_repr(self) -> str:
        return f"fraction={self.fraction}"
