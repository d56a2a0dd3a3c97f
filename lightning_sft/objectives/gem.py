"""GEM: fine-tuning that keeps the prediction diverse."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.scores import TokenScores


class GEM(Objective):
    """GEM: the target is lifted against what the model would say instead, and what it would not say is left alone.

    Formula:
        ``-sum_v q_v h_v (log p_y - log p_v)`` with ``q = sg(softmax(z / beta))``; h_v is 1 (``"linear"``) or
        ``sg(sigmoid((z_v - z_y) / 100))`` (``"log_sigmoid"``). The loss may be negative.

    When:
        Samples should stay diverse after fine-tuning: many attempts, reinforcement learning afterwards.

    Source:
        Li et al., "Preserving Diversity in Supervised Fine-Tuning of Large Language Models", arXiv 2408.16673.

    Args:
        beta: temperature of q, > 0; below 1 q is sharper than the model.
        h: ``"linear"`` or ``"log_sigmoid"``.

    Raises:
        UserError: ``beta`` is not a finite number > 0, or ``h`` is unknown.
    """

    reads = "row"

    def __init__(self, beta: float = 0.7, h: Literal["linear", "log_sigmoid"] = "linear") -> None:
        super().__init__()
        self.beta = in_range(self, "beta", beta, 0, open_low=True)
        if h not in ("linear", "log_sigmoid"):
            raise UserError(f'GEM got h={h!r}. Allowed: "linear", "log_sigmoid".')
        self.h = h

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        logits = scores.require("logits")
        # log p_v - log p_y: the partition function drops out
        lead = logits - logits.gather(-1, scores.targets[:, None])
        with torch.no_grad():
            weight = (logits / self.beta).softmax(-1)
            if self.h == "log_sigmoid":
                weight = weight * torch.sigmoid(lead / 100.0)
        return (weight * lead).sum(-1)

    @override
    def extra_repr(self) -> str:
        return f"beta={self.beta}, h={self.h}"
