"""An objective for each data source."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective, RunFacts
from lightning_sft.objectives.composite import Composite
from lightning_sft.scores import TokenScores

REST = "*"


class PerSource(Composite):
    """An objective for each data source: the model may be strong on one and weak on another.

    Formula:
        ``objective_i`` for the tokens of source i.

    When:
        Mixtures of data. Each objective is evaluated on all tokens, so the cost is the sum of the parts'.

    Source:
        A combinator, of no paper.

    Args:
        objectives: the objectives, by the names that the data module gives its sources.
        default: the objective of all other sources; without one, every source must be named.

    Raises:
        UserError: no objective is given, or (at start) a source is unknown or has none, or the objectives mask
            differently under ``denominator: kept``.
    """

    owner: Tensor

    def __init__(self, objectives: dict[str, Objective], default: Objective | None = None) -> None:
        super().__init__(objectives if default is None else objectives | {REST: default})
        # which part a source belongs to, (sources,): follows from the names, so checkpoints need not hold it
        self.register_buffer("owner", torch.zeros(0, dtype=torch.long), persistent=False)

    @override
    def prepare(self, facts: RunFacts) -> None:
        super().prepare(facts)
        known = ", ".join(map(repr, facts.sources)) or "none"
        if unknown := [name for name in self.names if name not in facts.sources and name != REST]:
            raise UserError(f"PerSource got objectives for unknown data sources {unknown}. Known in this run: {known}.")
        if REST not in self.names and (left := [name for name in facts.sources if name not in self.names]):
            raise UserError(
                f"PerSource got no objective for the data sources {left}. Name one for each, or give `default`. "
                f"Known in this run: {known}."
            )
        owner = [self.names.index(name if name in self.names else REST) for name in facts.sources]
        self.owner = torch.tensor(owner, dtype=torch.long, device=self.owner.device)

    def _part_of(self, scores: TokenScores) -> Tensor:
        """Return which part each token belongs to, (tokens,)."""
        return self.owner[scores.require("source")]

    @override
    def forward(self, scores: TokenScores) -> Tensor:
        losses = torch.stack([part(scores) for _, part in self.named_parts()])
        return losses.gather(0, self._part_of(scores)[None])[0]

    @override
    def kept(self, scores: TokenScores) -> Tensor:
        kept = torch.stack([part.kept(scores) for _, part in self.named_parts()])
        return kept.gather(0, self._part_of(scores)[None])[0]

    @override
    def statistics(self, scores: TokenScores) -> dict[str, Tensor]:
        owner = self._part_of(scores)
        return {
            f"{index}/{key}": value
            for index, (_, part) in enumerate(self.named_parts())
            for key, value in part.statistics(_select(scores, owner == index)).items()
        }


def _select(scores: TokenScores, mask: Tensor) -> TokenScores:
    """Return the scores of the tokens in ``mask``, (tokens,), bool."""
    fields = {name: value[mask] for name, value in vars(scores).items() if isinstance(value, Tensor)}
    return replace(scores, **fields)
