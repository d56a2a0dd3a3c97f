"""ASFT: an objective anchored to a reference model."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import kl_div
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.composite import Composite
from lightning_sft.objectives.dft import DFT
from lightning_sft.scores import TokenScores


class ASFT(Composite):
    """Anchored fine-tuning: DFT, or any base, with a divergence that ties the model to a reference.

    Formula:
        ``base + weight * KL(reference || model)`` (forward) or ``base + weight * KL(model || reference)`` (reverse),
        over the whole vocabulary; the reference carries no gradient.

    When:
        DFT drifts away from the base model, or the base model's other abilities must survive.

    Source:
        Zhu et al., "Anchored Supervised Fine-Tuning", arXiv 2509.23753. Forward is the direction of their code, and of
        LLaMA-Factory's. 0.05 is the weight of their README's command; both programs' own default is 0.1.

    Args:
        base: the objective that is anchored; DFT by default.
        weight: of the divergence, >= 0.
        direction: ``"forward"`` or ``"reverse"``.

    Raises:
        UserError: ``weight`` is negative or not finite, ``direction`` is unknown, the base reads the whole batch, or
            (at start) the run has no reference model.
    """

    reads = "row"
    reference = "logits"

    def __init__(
        self,
        base: Objective | None = None,
        weight: float = 0.05,
        direction: Literal["forward", "reverse"] = "forward",
    ) -> None:
        super().__init__({"base": DFT() if base is None else base})
        self.weight = in_range(self, "weight", weight, 0)
        if direction not in ("forward", "reverse"):
            raise UserError(f'ASFT got direction={direction!r}. Allowed: "forward", "reverse".')
        self.direction = direction

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        losses: Tensor = self.parts[0](scores)
        model = scores.log_softmax()
        reference = scores.require("reference_logits").detach().to(model.dtype).log_softmax(-1)
        # kl_div(input, target) is KL(target || input)
        ends = (model, reference) if self.direction == "forward" else (reference, model)
        return losses + self.weight * kl_div(*ends, reduction="none", log_target=True).sum(-1)

    @override
    def extra_repr(self) -> str:
        return f"weight={self.weight}, direction={self.direction}"
