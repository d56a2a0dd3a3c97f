"""Negative log likelihood, the default and the yardstick."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores


class NLL(Objective):
    """Negative log likelihood, ``-logp``: every token pulls with the same strength, s(p) = 1.

    The right choice where the model knows little of the task; see the capability continuum in the docs.
    """

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return -scores.logp
