"""A weighted sum of objectives."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.composite import Composite
from lightning_sft.scores import TokenScores


class WeightedSum(Composite):
    """A weighted sum of objectives, each under a name of your own.

    Formula:
        ``sum_i weight_i objective_i``; s(p) is the same sum of theirs.

    When:
        To mix two ideas, such as NLL with a little of another objective.

    Source:
        A combinator, of no paper.

    Args:
        objectives: the objectives, by name.
        weights: the weight of each, >= 0, by the same names; 1 where none is given.

    Raises:
        UserError: no objective is given, a weight is negative, not finite or of no objective, the objectives read the
            batch in ways that exclude each other, or (at start) they mask differently under ``denominator: kept``.
    """

    def __init__(self, objectives: dict[str, Objective], weights: dict[str, float] | None = None) -> None:
        super().__init__(objectives)
        given = weights or {}
        if unknown := sorted(set(given) - set(objectives)):
            raise UserError(f"WeightedSum got weights for {unknown}. Its objectives are {sorted(objectives)}.")
        self.weights = {name: in_range(self, f"weights[{name!r}]", given.get(name, 1.0), 0) for name in objectives}

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        losses = scores.logp.new_zeros(len(scores))
        for name, part in self.named_parts():
            losses = losses + self.weights[name] * part(scores)
        return losses

    @override
    def extra_repr(self) -> str:
        return f"weights={self.weights}"
