"""Any objective, tied to a reference model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective, Reads, Reference
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.composite import Composite
from lightning_sft.objectives.divergence import Direction, directed_kl, predictions
from lightning_sft.objectives.nll import NLL
from lightning_sft.scores import TokenScores

# where exp(log p_ref - log p) goes on as a straight line: fp32 ends at exp(88)
_STEEPEST = 20.0


class KLAnchor(Composite):
    """Any objective, tied to a reference model by a divergence between their predictions.

    Formula:
        ``base + weight * D``. With ``estimate="whole"`` D is ``KL(reference || model)`` (forward) or ``KL(model ||
        reference)`` (reverse) over the whole vocabulary. With ``estimate="target"`` it looks at the target alone:
        ``exp(d) - d - 1`` with ``d = log p_ref - log p``, the "k3" estimate, which is 0 where both agree and has the
        slope of ``s(p) = exp(d) - 1``. The reference carries no gradient.

    When:
        Fine-tuning must not cost the model its other abilities; the target's estimate where the reference's rows of
        logits are too dear.

    Source:
        Both codes of Zhu et al., arXiv 2509.23753 (mode "sft+kl"); the estimate: Schulman, "Approximating KL
        Divergence", 2020, which draws the tokens from the model, while here they are the data's.

    Args:
        base: the objective that is anchored; NLL by default.
        weight: of the divergence, >= 0.
        direction: ``"forward"`` or ``"reverse"``; of the whole divergence alone.
        estimate: ``"whole"`` or ``"target"``.

    Raises:
        UserError: ``weight`` is negative or not finite, ``direction`` or ``estimate`` is unknown, the base reads the
            whole batch beside a whole divergence, or (at start) the run has no reference model.
    """

    reads: Reads = "row"
    reference: Reference = "logits"

    def __init__(
        self,
        base: Objective | None = None,
        weight: float = 0.05,
        direction: Direction = "forward",
        estimate: Literal["whole", "target"] = "whole",
    ) -> None:
        if estimate not in ("whole", "target"):
            raise UserError(f'{type(self).__name__} got estimate={estimate!r}. Allowed: "whole", "target".')
        if estimate == "target":
            self.reads, self.reference = "logp", "logp"
        super().__init__({"base": NLL() if base is None else base})
        self.weight = in_range(self, "weight", weight, 0)
        if direction not in ("forward", "reverse"):
            raise UserError(f'{type(self).__name__} got direction={direction!r}. Allowed: "forward", "reverse".')
        self.direction, self.estimate = direction, estimate

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        losses: Tensor = self.parts[0](scores)
        if self.estimate == "whole":
            return losses + self.weight * directed_kl(*predictions(scores), self.direction)
        gap = scores.require("reference_logp").detach().to(scores.logp.dtype) - scores.logp
        near = gap.clamp(max=_STEEPEST)
        # expm1, as the estimate is gap^2 / 2 where both agree
        return losses + self.weight * (torch.expm1(near) + near.exp().detach() * (gap - near) - gap)

    @override
    def extra_repr(self) -> str:
        return f"weight={self.weight}, direction={self.direction}, estimate={self.estimate}"
