"""Fresh draws of rows for the replicates of a comparison: tasks draw anew, files are dealt out in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from lightning_sft.data.library import SetLibrary
from lightning_sft.data.reading.sources import DataSource
from lightning_sft.data.spool import Chosen, Spool
from lightning_sft.data.types import BadRow, Example
from lightning_sft.errors import UserError


class Part(DataSource):
    """One of several parts of a source's rows, dealt out by a seed: parts share no row, and together are the source.

    Bad rows belong to the first part, so that each is counted once.

    Args:
        source: whose rows are dealt out.
        number: of the part, from 0.
        of: number of parts.
        seed: of the deal.
    """

    def __init__(self, source: DataSource, number: int, of: int, seed: int) -> None:
        if not 0 <= number < of:
            raise UserError(f"Part {number} of {of} was asked for. Allowed: 0 to {of - 1}.")
        self.source = source
        self.number = number
        self.of = of
        self.seed = seed
        self.name = source.name
        self.weight = source.weight
        self.drop_leaks = source.drop_leaks
        self.system = source.system

    @override
    def examples(self, answers: bool = True) -> Iterator[Example | BadRow]:
        """Yield the part's rows, in the order of the source.

        Raises:
            UserError: the source has fewer rows than there are parts.
        """
        rows: Spool[Example | BadRow] = Spool()
        is_bad = bytearray()
        for row in self.source.examples(answers):
            rows.append(row)
            is_bad.append(isinstance(row, BadRow))
        count = len(rows) - sum(is_bad)
        if count < self.of:
            raise UserError(
                f"The source {self.name!r} has {count} rows to judge by, and each of {self.of} replicates needs rows "
                "of its own. Give more rows, fewer replicates, or data.val_split in place of a file."
            )
        order = np.random.default_rng([self.seed, count]).permutation(count)
        mine = np.zeros(count, np.bool_)
        mine[order[self.number :: self.of]] = True
        chosen = np.full(len(rows), self.number == 0, np.bool_)
        chosen[np.frombuffer(is_bad, np.uint8) == 0] = mine
        yield from Chosen(rows, np.flatnonzero(chosen))

    @override
    def identity(self) -> list[Any] | None:
        whole = self.source.identity()
        return None if whole is None else [whole, "part", self.number, self.of, self.seed]

    @override
    def score(self, example: Example, answer: str) -> float | None:
        return self.source.score(example, answer)


def needs_parts(library: SetLibrary) -> bool:
    """Return whether a run's validation rows can be drawn afresh only by dealing out the rows that there are."""
    return library.val_split is None and any(source.drawn(0) is None for source in library.sources_of["val"])


def draw_afresh(library: SetLibrary, seed: int, part: int = 0, parts: int = 1, deal: int = 0) -> None:
    """Give a library the rows of one replicate, before any set is built.

    Sources that can draw (tasks) draw training and validation rows anew. What ``val_split`` holds out follows
    ``seed``. Other validation sources are dealt out in parts, one a replicate. Other training sources stay whole: the
    order of their rows, which is the data module's seed, says which of them a short run sees.

    Args:
        library: the sets of a run.
        seed: of the replicate.
        part: which part of validation sources that cannot draw.
        parts: how many there are.
        deal: seed of the deal, the same for all replicates.
    """
    library.seed = seed

    def fresh(source: DataSource, *, judged: bool) -> DataSource:
        drawn = source.drawn(seed)
        if drawn is not None:
            return drawn
        return Part(source, part, parts, deal) if judged and parts > 1 else source

    def all_fresh(sources: Sequence[DataSource], *, judged: bool) -> list[DataSource]:
        return [fresh(source, judged=judged) for source in sources]

    drawn = {what: all_fresh(library.sources_of[what], judged=what == "val") for what in ("train", "val")}
    library.sources_of = {**library.sources_of, **drawn}
