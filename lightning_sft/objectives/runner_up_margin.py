"""Ours: a margin over the strongest competitor, against silent failure."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective, RunFacts
from lightning_sft.objectives.checks import in_range
from lightning_sft.objectives.composite import Composite
from lightning_sft.objectives.nll import NLL
from lightning_sft.scores import TokenScores

NOBODY = -1


class RunnerUpMargin(Composite):
    """Any base, with a margin by which the target's logit must lead its strongest competitor.

    Formula:
        ``base + weight * max(0, margin - (z_y - z_r))`` with gradient, r the strongest other candidate, or, with
        ``pairs``, the strongest of the target's given near-synonyms. Inside the margin the target is pushed up and r
        down with force ``weight``, whatever their probabilities; outside, and for targets without a pair, only the
        base acts.

    When:
        Cross entropy falls while a near-synonym stays ahead of the right word: NLL pushes each candidate down with its
        own probability only, so one that holds 5% feels a twentieth of the target's force.

    Source:
        Ours, against the silent failure of arXiv 2606.07559 (reconstructed from the abstract of arXiv 2606.07559).

    Args:
        base: the objective that the margin is added to; NLL by default.
        margin: the lead, in nats of logit, beyond which the term is 0; >= 0.
        weight: of the margin's term, >= 0.
        pairs: pairs of token ids that compete, in both directions, such as ``[[262, 5110]]``; all candidates compete
            if it is left out.

    Raises:
        UserError: a value is out of range, ``pairs`` is empty or holds something else than two different ids >= 0, the
            base reads the whole batch, or (at start) an id is outside the vocabulary.
    """

    reads = "row"
    known: Tensor
    rivals: Tensor

    def __init__(
        self,
        base: Objective | None = None,
        margin: float = 1.0,
        weight: float = 0.5,
        pairs: list[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__({"base": NLL() if base is None else base})
        self.margin = in_range(self, "margin", margin, 0)
        self.weight = in_range(self, "weight", weight, 0)
        known, rivals = (torch.zeros(0, dtype=torch.long),) * 2 if pairs is None else _table(pairs)
        self.limited = pairs is not None
        # follow from `pairs`, so checkpoints need not hold them
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("rivals", rivals, persistent=False)

    @override
    def prepare(self, facts: RunFacts) -> None:
        super().prepare(facts)
        largest = int(self.known.max()) if self.limited else 0
        if facts.vocabulary is not None and largest >= facts.vocabulary:
            raise UserError(
                f"RunnerUpMargin got a pair with token id {largest}, but the ids of this model's vocabulary end at "
                f"{facts.vocabulary - 1}. Take the ids from this model's tokenizer."
            )

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        losses: Tensor = self.parts[0](scores)
        behind = self._behind_rivals(scores) if self.limited else scores.runner_up()[0]
        return losses + self.weight * (self.margin + behind).clamp(min=0)

    def _behind_rivals(self, scores: TokenScores) -> Tensor:
        """Return the strongest given rival's logit minus the target's, (tokens,); far below 0 without a rival."""
        logits = scores.require("logits")
        place = torch.searchsorted(self.known, scores.targets).clamp(max=len(self.known) - 1)
        rivals = self.rivals[place]
        absent = (rivals == NOBODY) | (self.known[place] != scores.targets)[:, None]
        strongest = logits.gather(-1, rivals.clamp(min=0)).masked_fill(absent, float("-inf")).amax(-1)
        return strongest - logits.gather(-1, scores.targets[:, None])[:, 0]

    @override
    def extra_repr(self) -> str:
        told = f", {len(self.known)} tokens with rivals" if self.limited else ""
        return f"margin={self.margin}, weight={self.weight}{told}"


def _table(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return the ids that have rivals, rising, (known,), and their rivals, (known, most), filled up with NOBODY."""
    rivals: dict[int, set[int]] = {}
    for pair in pairs:
        if len(pair) != 2 or pair[0] == pair[1] or min(pair) < 0:
            raise UserError(f"RunnerUpMargin got the pair {list(pair)}. Allowed: two different token ids >= 0.")
        for one, other in (pair, pair[::-1]):
            rivals.setdefault(one, set()).add(other)
    if not rivals:
        raise UserError("RunnerUpMargin got no pair. Give pairs of token ids, or leave `pairs` out: all compete then.")
    most = max(map(len, rivals.values()))
    rows = [sorted(rivals[one]) + [NOBODY] * (most - len(rivals[one])) for one in sorted(rivals)]
    return torch.tensor(sorted(rivals)), torch.tensor(rows)
