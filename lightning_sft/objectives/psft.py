"""PSFT: fine-tuning that takes small steps from a snapshot of itself."""

from __future__ import annotations

import math

from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.scores import TokenScores


class PSFT(Objective):
    """Proximal fine-tuning: a token stops pulling once it is likelier by some factor than in a snapshot of the model.

    Formula:
        ``-min(r, 1 + clip)`` with ``r = p / p_old``, p_old of the model as it was at the last snapshot; the slope is
        ``s = r`` while r < 1 + clip, and 0 beyond. With a snapshot at every step it has NLL's gradient.

    When:
        Several small steps on the same rows, or a model whose other abilities must survive: no token runs away between
        two snapshots.

    Source:
        "Proximal Supervised Fine-Tuning", arXiv 2508.17784. Their lower end, 1 - 0.2, never acts, since the minimum is
        taken with r itself. Their recipe: a snapshot every 64 rows, steps of 8 rows, learning rate 1e-6.

    Args:
        every_n_steps: optimizer steps between two snapshots, >= 1; must be given.
        clip: how much likelier a token may become, > 0.

    Raises:
        UserError: ``every_n_steps`` is missing or below 1, or ``clip`` is not a finite number > 0.
    """

    reference = "logp"

    def __init__(self, every_n_steps: int | None = None, clip: float = 0.28) -> None:
        super().__init__()
        if every_n_steps is None or every_n_steps < 1:
            raise UserError(
                f"PSFT got every_n_steps={every_n_steps}. Allowed: an integer >= 1, the optimizer steps from one "
                "snapshot of the model to the next; their recipe has 8."
            )
        self.snapshot_every = every_n_steps
        self.clip = in_range(self, "clip", clip, 0, open_low=True)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        gain = scores.logp - scores.require("reference_logp").detach().to(scores.logp.dtype)
        return -gain.clamp(max=math.log1p(self.clip)).exp()

    @override
    def extra_repr(self) -> str:
        return f"every_n_steps={self.snapshot_every}, clip={self.clip}"
