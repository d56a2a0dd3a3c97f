"""Negative log likelihood, the default."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores


class NLL(Objective):
    """Negative log likelihood: every token has the same weight.

    Formula:
        ``-log p``; s(p) = 1.

    When:
        The default, and the right choice where the model knows little of the task. Where the model is
        strong, most of the loss comes from the tokens that it finds unlikely, and noise is among them.

    Source:
        Maximum likelihood; the yardstick of every other objective here.
    """

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return -scores.logp
