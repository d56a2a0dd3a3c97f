"""Objectives made of other objectives: one place that passes every call on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives.base import Objective, Reads, Reference, RunFacts
from lightning_sft.scores import TokenScores


class Composite(Objective):
    """An objective over named parts. Subclasses write ``forward``; reading, checking and state are passed on.

    ``reads`` and ``reference`` become the widest of the class's own and the parts'.

    Args:
        parts: the objectives it is made of, by name.

    Raises:
        UserError: there is no part, or one reads its row of logits and another one the batch, which no head gives.
    """

    def __init__(self, parts: Mapping[str, Objective]) -> None:
        super().__init__()
        if not parts:
            raise UserError(f"{type(self).__name__} got no objective. Give it at least one, by name.")
        self.names = tuple(parts)
        # a list, as the keys of a ModuleDict may hold no dot and names of data sources may
        self.parts = nn.ModuleList(parts.values())
        self.reads = self._widest_reads()
        order: Sequence[Reference] = ("none", "logp", "logits")
        self.reference = max(self.reference, *(part.reference for part in parts.values()), key=order.index)
        self.snapshot_every = self._one_reference()

    def _widest_reads(self) -> Reads:
        readers = {self.reads: type(self).__name__} | {
            part.reads: type(part).__name__ for _, part in self.named_parts()
        }
        if "row" in readers and "batch" in readers:
            raise UserError(
                f"{readers['row']} looks at every token's row of logits and {readers['batch']} at the other tokens of "
                "the batch; one objective cannot do both. Take one of them out."
            )
        return "batch" if "batch" in readers else "row" if "row" in readers else "logp"

    def _one_reference(self) -> int:
        """Return when the reference is renewed; a run has one, so all that compare must mean the same."""
        own = {} if type(self).reference == "none" else {type(self).__name__: 0}
        wanted = own | {type(p).__name__: p.snapshot_every for _, p in self.named_parts() if p.reference != "none"}
        if len(set(wanted.values())) > 1:
            kinds = {name: f"a snapshot every {n} steps" if n else "a frozen one" for name, n in wanted.items()}
            told = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
            raise UserError(f"A run has one reference model, and {told} is wanted. Take one of them out.")
        return max(wanted.values(), default=0)

    def named_parts(self) -> list[tuple[str, Objective]]:
        """Return the names and the objectives."""
        return [(name, cast(Objective, part)) for name, part in zip(self.names, self.parts, strict=True)]

    @override
    def prepare(self, facts: RunFacts) -> None:
        for _, part in self.named_parts():
            part.prepare(facts)  # first: what a part lacks is told in the part's name
        super().prepare(facts)
        masks = {name: part.mask() for name, part in self.named_parts()}
        if facts.denominator == "kept" and len(set(masks.values())) > 1:
            told = ", ".join(f"{name!r} keeps {mask}" for name, mask in masks.items())
            raise UserError(
                f"{type(self).__name__} mixes objectives that keep different tokens ({told}), and the run divides by "
                'the kept tokens: they have no common denominator. Set denominator: "all", or give them one mask.'
            )

    @override
    def kept(self, scores: TokenScores) -> Tensor:
        # what any part keeps; under denominator="kept" prepare has made sure that they agree
        masks = [part.kept(scores) for _, part in self.named_parts()]
        return torch.stack(masks).any(0)

    @override
    def mask(self) -> str:
        return self.named_parts()[0][1].mask()

    @override
    def statistics(self, scores: TokenScores) -> dict[str, Tensor]:
        return {
            f"{index}/{key}": value
            for index, (_, part) in enumerate(self.named_parts())
            for key, value in part.statistics(scores).items()
        }

    @override
    def needs_seed(self) -> bool:
        return any(part.needs_seed() for _, part in self.named_parts())

    @override
    def seed(self, sums: dict[str, Tensor]) -> None:
        for index, (_, part) in enumerate(self.named_parts()):
            if part.needs_seed():
                part.seed(_of(index, sums))

    @override
    def update(self, sums: dict[str, Tensor]) -> None:
        for index, (_, part) in enumerate(self.named_parts()):
            part.update(_of(index, sums))

    @override
    def logged(self) -> dict[str, Tensor | float]:
        return {f"{name}/{key}": value for name, part in self.named_parts() for key, value in part.logged().items()}


def _of(index: int, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums of one part, under its own keys."""
    return {key.removeprefix(f"{index}/"): value for key, value in sums.items() if key.startswith(f"{index}/")}
