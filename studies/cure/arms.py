"""The objective of the study's arms: NLL everywhere, and something else where the target is one of some words."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives import NLL, Objective
from lightning_sft.objectives.base import RunFacts
from lightning_sft.objectives.composite import Composite
from lightning_sft.scores import TokenScores


class OnWords(Composite):
    """NLL, and on tokens whose target is one of some words another objective with a weight.

    Args:
        words: that are one token with a space in front.
        inner: the objective of these tokens; NLL by default.
        weight: that it is multiplied by.

    Raises:
        UserError: no word, or (at start) one that is not one token, or a run without tokenizer.
    """

    ids: Tensor

    def __init__(self, words: list[str], inner: Objective | None = None, weight: float = 1.0) -> None:
        super().__init__({"inner": NLL() if inner is None else inner})
        if not words:
            raise UserError("OnWords got no word. Give those that it is to act on.")
        self.words, self.weight = words, weight
        self.register_buffer("ids", torch.zeros(0, dtype=torch.long), persistent=False)

    @override
    def prepare(self, facts: RunFacts) -> None:
        super().prepare(facts)
        if facts.token_ids is None:
            raise UserError("OnWords needs a tokenizer to find its words, and this run has none.")
        ids = [facts.token_ids(f" {word}") for word in self.words]
        longer = [word for word, one in zip(self.words, ids, strict=True) if len(one) != 1]
        if longer:
            raise UserError(f"OnWords got {longer[:5]}, which are not one token of this tokenizer. Leave them out.")
        self.ids = torch.tensor([one[0] for one in ids], dtype=torch.long, device=self.ids.device)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        inner: Tensor = self.parts[0](scores)
        return torch.where(torch.isin(scores.targets, self.ids), self.weight * inner, -scores.logp)

    @override
    def extra_repr(self) -> str:
        return f"{len(self.words)} words, weight={self.weight:g}"
