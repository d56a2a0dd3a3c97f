"""Ours: a power-family objective that follows how much the model already believes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective, RunFacts
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.exact import one_minus_power
from lightning_sft.objectives.power import NEARLY_NLL
from lightning_sft.scores import TokenScores


class Adaptive(Objective):
    """The power family with an exponent that follows the measured mean p: NLL while the model is weak, -p when strong.

    Formula:
        ``(1 - p^alpha) / alpha``, alpha = alpha_max * clamp((mean p - weak) / (strong - weak), 0, 1), where mean p is
        the moving average over optimizer steps of the mean p of all supervised tokens of a step, or of those of the
        token's data source. Updated once per optimizer step, from sums over micro-batches and ranks; the first step
        uses its own.

    When:
        The place on the capability continuum is unknown, differs between sources, or moves during training.

    Source:
        Ours, after the continuum of Li et al., arXiv 2510.00526, which gives no cut-offs: 0.10 and 0.70 are ours.

    Args:
        weak: mean p at and below which alpha is 0, in [0, 1).
        strong: mean p at and above which alpha is ``alpha_max``, above ``weak`` and at most 1.
        alpha_max: the largest exponent, >= 0.
        decay: how much of the moving average a step keeps, in [0, 1).
        per_source: one alpha for each data source instead of one for the run.

    Raises:
        UserError: a value is out of range, or (at start) ``per_source`` in a run without named data sources or with a
            checkpoint of another number of them.
    """

    mean_p: Tensor

    def __init__(
        self,
        weak: float = 0.10,
        strong: float = 0.70,
        alpha_max: float = 1.0,
        decay: float = 0.9,
        per_source: bool = False,
    ) -> None:
        super().__init__()
        self.weak = in_range(self, "weak", weak, 0, 1)
        self.strong = in_range(self, "strong", strong, self.weak, 1, open_low=True)
        self.alpha_max = in_range(self, "alpha_max", alpha_max, 0)
        self.decay = in_range(self, "decay", decay, 0, 1, open_high=True)  # 1 would never let alpha move
        self.per_source = per_source
        self.groups: tuple[str, ...] = ("",)
        # nan: not measured yet, and alpha is 0
        self.register_buffer("mean_p", torch.full((0 if per_source else 1,), math.nan))

    @override
    def prepare(self, facts: RunFacts) -> None:
        super().prepare(facts)
        if not self.per_source:
            return
        if not facts.sources:
            raise UserError("Adaptive got per_source=True, but this run names no data sources. Set per_source=False.")
        if len(self.mean_p) not in (0, len(facts.sources)):
            raise UserError(
                f"Adaptive holds the state of {len(self.mean_p)} data sources, and this run has {len(facts.sources)}: "
                f"{list(facts.sources)}. Resume with the data of the checkpoint, or start afresh."
            )
        if not len(self.mean_p):
            self.mean_p = self.mean_p.new_full((len(facts.sources),), math.nan)
        self.groups = tuple(f"/{name}" for name in facts.sources)

    def alpha(self) -> Tensor:
        """Return the exponents, (1,) or (sources,)."""
        place = (self.mean_p.nan_to_num(0.0) - self.weak) / (self.strong - self.weak)
        return self.alpha_max * place.clamp(0.0, 1.0)

    def _group(self, scores: TokenScores) -> Tensor:
        return scores.require("source") if self.per_source else torch.zeros_like(scores.targets)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        # NEARLY_NLL cannot be told from 0, and can be divided by
        alpha = self.alpha().to(scores.logp.dtype).clamp(min=NEARLY_NLL)[self._group(scores)]
        return one_minus_power(scores.logp, alpha) / alpha

    @override
    def statistics(self, scores: TokenScores) -> dict[str, Tensor]:
        group, p = self._group(scores), scores.p
        zeros = p.new_zeros(len(self.mean_p))
        return {"p": zeros.index_add(0, group, p), "tokens": zeros.index_add(0, group, torch.ones_like(p))}

    @override
    def needs_seed(self) -> bool:
        return bool(self.mean_p.isnan().all())

    @override
    def seed(self, sums: dict[str, Tensor]) -> None:
        self.update(sums)

    @override
    def update(self, sums: dict[str, Tensor]) -> None:
        seen = sums["p"] / sums["tokens"]  # nan for a source without tokens in this step, which keeps its average
        moved = self.decay * self.mean_p + (1.0 - self.decay) * seen
        first = torch.where(self.mean_p.isnan(), seen, moved)
        self.mean_p.copy_(torch.where(seen.isnan(), self.mean_p, first))

    @override
    def logged(self) -> dict[str, Tensor | float]:
        values: dict[str, Tensor | float] = {}
        for name, alpha, mean in zip(self.groups, self.alpha(), self.mean_p.nan_to_num(0.0), strict=True):
            values |= {f"alpha{name}": alpha, f"mean_p{name}": mean}
        return values

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}mean_p")
        if stored is not None and not len(self.mean_p):  # loaded before prepare has told the number of sources
            self.mean_p = self.mean_p.new_full(stored.shape, math.nan)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @override
    def extra_repr(self) -> str:
        return f"weak={self.weak}, strong={self.strong}, alpha_max={self.alpha_max}, per_source={self.per_source}"
