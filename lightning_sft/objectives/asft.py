"""ASFT: DFT anchored to a reference model."""

from __future__ import annotations

from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.dft import DFT
from lightning_sft.objectives.divergence import Direction
from lightning_sft.objectives.kl_anchor import KLAnchor


class ASFT(KLAnchor):
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

    def __init__(self, base: Objective | None = None, weight: float = 0.05, direction: Direction = "forward") -> None:
        super().__init__(DFT() if base is None else base, weight, direction)
