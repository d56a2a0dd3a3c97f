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
from lightning_sft.objectives.rivals import NOBODY, are_ids, as_ids, rivals_table
from lightning_sft.scores import TokenScores


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
        pairs: what competes, in both directions: pairs of token ids or of words, such as ``[[262, 5110]]`` or
            ``[[shame, guilt]]``, or a ``.jsonl`` file of probes, such as the ``silent.jsonl`` of a run, read at start.
            Words count with and without a space in front of them. All candidates compete if it is left out.

    Raises:
        UserError: a value is out of range, ``pairs`` is empty or holds something else than two different ids >= 0 or
            words, the base reads the whole batch, or (at start) an id is outside the vocabulary, a word is not one
            token, or the file holds no pair.
    """

    reads = "row"
    known: Tensor
    rivals: Tensor

    def __init__(
        self,
        base: Objective | None = None,
        margin: float = 1.0,
        weight: float = 0.5,
        pairs: list[tuple[int | str, int | str]] | str | None = None,
    ) -> None:
        super().__init__({"base": NLL() if base is None else base})
        self.margin = in_range(self, "margin", margin, 0)
        self.weight = in_range(self, "weight", weight, 0)
        self.pairs = pairs
        ready = pairs is not None and are_ids(pairs)
        known, rivals = rivals_table(pairs) if ready else (torch.zeros(0, dtype=torch.long),) * 2
        self.limited = pairs is not None
        # follow from `pairs`, so checkpoints need not hold them
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("rivals", rivals, persistent=False)

    @override
    def prepare(self, facts: RunFacts) -> None:
        super().prepare(facts)
        if self.pairs is not None and not are_ids(self.pairs):
            known, rivals = rivals_table(as_ids(self.pairs, facts))
            self.known, self.rivals = known.to(self.known.device), rivals.to(self.rivals.device)
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
        if not len(self.known):
            raise UserError(
                "RunnerUpMargin was given words or a file as pairs, and they become token ids in prepare(RunFacts("
                "token_ids=...)), which a run calls at its start. Call it, or give pairs of ids."
            )
        place = torch.searchsorted(self.known, scores.targets).clamp(max=len(self.known) - 1)
        rivals = self.rivals[place]
        absent = (rivals == NOBODY) | (self.known[place] != scores.targets)[:, None]
        strongest = logits.gather(-1, rivals.clamp(min=0)).masked_fill(absent, float("-inf")).amax(-1)
        return strongest - logits.gather(-1, scores.targets[:, None])[:, 0]

    @override
    def extra_repr(self) -> str:
        told = f", {len(self.known)} tokens with rivals" if self.limited else ""
        return f"margin={self.margin}, weight={self.weight}{told}"
