"""What the arms train: all weights, or LoRA of some rank on every linear layer; and the objective of answers alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.objectives import Objective
from lightning_sft.objectives.base import RunFacts
from lightning_sft.scores import TokenScores

FULL = "full"
#: rate that this arm has in place of the stage's
FASTER_RATE = 3e-5
#: all weights, at that rate
FASTER = f"full, {FASTER_RATE:g}"
RANKS = (1, 4, 16, 64)


def lora(rank: int) -> str:
    """Return the name of an arm with LoRA.

    >>> lora(4)
    'LoRA, rank 4'
    """
    return f"LoRA, rank {rank}"


ARMS = (FULL, *(lora(rank) for rank in RANKS))


def adapter_of(arm: str) -> dict[str, Any] | None:
    """Return an arm's adapter as a setting; None where all weights are trained.

    ``lora_alpha`` is twice the rank, so that the product of the two matrices is scaled alike at every rank.
    """
    if arm in (FULL, FASTER):
        return None
    rank = int(arm.rpartition(" ")[2])
    options = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "target_modules": "all-linear"}
    return {"class_path": "peft.LoraConfig", "init_args": options}


class AnswersAlone(Objective):
    """NLL of all tokens but special ones: a row's end token, which follows every text, is not taught."""

    special: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("special", torch.zeros(0, dtype=torch.long), persistent=False)

    @override
    def prepare(self, facts: RunFacts) -> None:
        super().prepare(facts)
        self.special = torch.tensor(facts.special_tokens, dtype=torch.long, device=self.special.device)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        return torch.where(torch.isin(scores.targets, self.special), 0.0, -scores.logp)
