"""Any objective, with NLL on special tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective, RunFacts
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.composite import Composite
from lightning_sft.scores import TokenScores


class SpecialTokens(Composite):
    """Any objective, with NLL on special tokens, such as the end of a turn.

    Formula:
        ``-weight log p`` where the target is a special token, the base elsewhere; s(p) is ``weight`` there. All special
        tokens are kept, whatever the base drops.

    When:
        A base model under a chat template, and an objective that leans on what the model believes: it finds the end of
        a turn impossible, never learns it, and does not stop.

    Source:
        Ours, after what users of DFT report.

    Args:
        base: the objective of all other tokens.
        weight: of the special tokens' NLL, >= 0.

    Raises:
        UserError: ``weight`` is negative or not finite, or (at start) the tokenizer has no special tokens.
    """

    ids: Tensor

    def __init__(self, base: Objective, weight: float = 1.0) -> None:
        super().__init__({"base": base})
        self.weight = in_range(self, "weight", weight, 0)
        # they follow from the tokenizer, so checkpoints need not hold them
        self.register_buffer("ids", torch.zeros(0, dtype=torch.long), persistent=False)

    @override
    def prepare(self, facts: RunFacts) -> None:
        super().prepare(facts)
        if not facts.special_tokens:
            raise UserError(
                "SpecialTokens found no special tokens in this run's tokenizer. Take its base by itself, or give the "
                "tokenizer its end token."
            )
        self.ids = torch.tensor(facts.special_tokens, dtype=torch.long, device=self.ids.device)

    def _is_special(self, scores: TokenScores) -> Tensor:
        return torch.isin(scores.targets, self.ids)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        losses: Tensor = self.parts[0](scores)
        return torch.where(self._is_special(scores), -self.weight * scores.logp, losses)

    @override
    def kept(self, scores: TokenScores) -> Tensor:
        return super().kept(scores) | self._is_special(scores)

    @override
    def mask(self) -> str:
        return "all" if super().mask() == "all" else f"{super().mask()} or special tokens"

    @override
    def extra_repr(self) -> str:
        return f"weight={self.weight}"
