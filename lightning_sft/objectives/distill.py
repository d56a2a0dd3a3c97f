"""Distillation: the data's tokens, and the whole prediction of a teacher."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.composite import Composite
from lightning_sft.objectives.divergence import directed_kl, jensen_shannon, predictions
from lightning_sft.objectives.nll import NLL
from lightning_sft.scores import TokenScores

DIVERGENCES = ("forward", "reverse", "jsd")


class Distill(Composite):
    """Distillation: a teacher's whole prediction beside the data's token. The teacher is the run's reference model.

    Formula:
        ``(1 - weight) base + weight T^2 D(teacher, student)``, both predictions at temperature T. D is ``KL(teacher ||
        student)`` (``"forward"``), ``KL(student || teacher)`` (``"reverse"``), or ``"jsd"``: ``beta KL(teacher || m) +
        (1 - beta) KL(student || m)`` with ``m = beta teacher + (1 - beta) student``.

    When:
        A stronger model of the same vocabulary is at hand (``model.reference``): its predictions say more of a token
        than the token does.

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531; the generalized
        Jensen-Shannon divergence: Agarwal et al., arXiv 2306.13649.

    Args:
        base: the objective of the data's tokens; NLL by default.
        weight: share of the divergence, in [0, 1].
        divergence: ``"forward"``, ``"reverse"`` or ``"jsd"``.
        beta: the teacher's share in the mixture of ``"jsd"``, in (0, 1); at its ends take the other two.
        temperature: T, > 0; both rows of logits are divided by it.

    Raises:
        UserError: a value is out of range, ``divergence`` is unknown, the base reads the whole batch, or (at start) the
            run has no reference model.
    """

    reads = "row"
    reference = "logits"

    def __init__(
        self,
        base: Objective | None = None,
        weight: float = 0.5,
        divergence: Literal["forward", "reverse", "jsd"] = "forward",
        beta: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__({"base": NLL() if base is None else base})
        self.weight = in_range(self, "weight", weight, 0, 1)
        if divergence not in DIVERGENCES:
            raise UserError(f'Distill got divergence={divergence!r}. Allowed: "forward", "reverse", "jsd".')
        self.divergence = divergence
        self.beta = in_range(self, "beta", beta, 0, 1, open_low=True, open_high=True)
        self.temperature = in_range(self, "temperature", temperature, 0, open_low=True)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        student, teacher = predictions(scores, self.temperature)
        if self.divergence == "jsd":
            apart = jensen_shannon(student, teacher, self.beta)
        else:
            apart = directed_kl(student, teacher, self.divergence)
        losses: Tensor = self.parts[0](scores)
        return (1.0 - self.weight) * losses + self.weight * self.temperature**2 * apart

    @override
    def extra_repr(self) -> str:
        beta = f", beta={self.beta}" if self.divergence == "jsd" else ""
        return f"weight={self.weight}, divergence={self.divergence}{beta}, temperature={self.temperature}"
