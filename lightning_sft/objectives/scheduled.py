"""From one objective to another over the optimizer steps."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective, RunFacts
from lightning_sft.objectives.composite import Composite
from lightning_sft.scores import TokenScores


class Scheduled(Composite):
    """From one objective to another, linearly over the optimizer steps.

    Formula:
        ``(1 - w) start + w end``, w = (step - begin_step) / (end_step - begin_step) within [0, 1], where step counts
        the finished optimizer steps and is kept in checkpoints. Equal steps make a switch.

    When:
        The model is weak on the task at first and strong later: NLL first, then -p.

    Source:
        A combinator, of no paper.

    Args:
        start: the objective up to ``begin_step``.
        end: the objective from ``end_step`` on.
        begin_step: the last step of ``start`` alone, >= 0.
        end_step: the first step of ``end`` alone, >= ``begin_step``; the run's last step by default.

    Raises:
        UserError: the steps are negative or in the wrong order, ``end_step`` is missing in a run whose length is
            unknown, or the two mask differently under ``denominator: kept``.
    """

    step: Tensor
    last: Tensor

    def __init__(self, start: Objective, end: Objective, begin_step: int = 0, end_step: int | None = None) -> None:
        super().__init__({"start": start, "end": end})
        if begin_step < 0 or (end_step is not None and end_step < begin_step):
            raise UserError(
                f"Scheduled got begin_step={begin_step} and end_step={end_step}. Allowed: 0 <= begin_step <= end_step."
            )
        self.begin_step = begin_step
        self.end_step = end_step
        self.planned = end_step
        self.register_buffer("step", torch.tensor(0))
        # what `planned` was in training: validation alone does not know the length of the run
        self.register_buffer("last", torch.tensor(-1 if end_step is None else end_step))

    @override
    def prepare(self, facts: RunFacts) -> None:
        super().prepare(facts)
        self.planned = facts.total_steps if self.end_step is None else self.end_step
        if not facts.training:
            return
        if self.planned is None:
            raise UserError(
                "Scheduled got no end_step, and the length of this run in optimizer steps is unknown. Give end_step, "
                "or max_steps or max_epochs to the trainer."
            )
        if self.planned < self.begin_step:
            raise UserError(
                f"Scheduled got begin_step={self.begin_step}, but this run ends after {self.planned} optimizer steps. "
                "Give an earlier begin_step."
            )

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return w, the share of ``end``, scalar in [0, 1]."""
        last = int(self.last) if self.planned is None else self.planned
        # a switch, where both steps are one, happens at that step itself
        done = (self.step - self.begin_step + (last == self.begin_step)).to(dtype)
        return (done / max(1, last - self.begin_step)).clamp(0.0, 1.0)

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        weight = self.weight(scores.logp.dtype)
        losses: Tensor = (1.0 - weight) * self.parts[0](scores) + weight * self.parts[1](scores)
        return losses

    @override
    def update(self, sums: dict[str, Tensor]) -> None:
        super().update(sums)
        self.step += 1
        if self.planned is not None:
            self.last.fill_(self.planned)

    @override
    def logged(self) -> dict[str, Tensor | float]:
        return super().logged() | {"weight": self.weight()}

    @override
    def extra_repr(self) -> str:
        return f"begin_step={self.begin_step}, end_step={self.end_step}"
