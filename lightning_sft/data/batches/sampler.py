"""The order of rows: a permutation of each epoch, dealt to the ranks, no row repeated or lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler
from typing_extensions import override

from lightning_sft.data.batches.grouping import group_by_length
from lightning_sft.data.indices import Indices, count_up, empty_indices, shuffled_indices
from lightning_sft.data.spool import pieces
from lightning_sft.data.types import PADDING

PIECE = 1 << 14
"""Indices that become Python's numbers together: they take four times the memory."""


class EpochSampler(DistributedSampler[int]):
    """Deals the rows of an epoch to the ranks.

    The order of all rows is a permutation drawn from (seed, epoch), rearranged into batches of similar length
    where ``lengths`` are given; rank r takes the positions r, r + W, ... of it: lengths are similar on all ranks, too.
    Ranks that come short get `PADDING` at the end, so that all have the same number of batches. A subclass of
    ``DistributedSampler`` since Lightning replaces other samplers.

    Args:
        dataset: the rows, those of one source side by side.
        groups: for each source its number of rows and how often each row is seen in an epoch; default is once.
        num_replicas: number of ranks.
        rank: rank of this process.
        shuffle: whether to permute.
        seed: seed of the order, at least 0.
        lengths: (rows,) tokens of each row, to group by; needs ``shuffle``.
        batch_size: rows of a batch on one rank, for grouping.
    """

    def __init__(
        self,
        dataset: Sized,
        groups: Sequence[tuple[int, float]] | None = None,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        lengths: NDArray[np.int64] | None = None,
        batch_size: int = 1,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.groups = tuple(groups) if groups is not None else ((len(dataset), 1.0),)
        self.rows = len(dataset)
        if sum(rows for rows, _ in self.groups) != self.rows:
            raise ValueError(f"groups {self.groups} do not add up to the dataset's {self.rows} rows")
        self.epoch_rows = sum(int(rows * weight + 0.5) for rows, weight in self.groups)
        self.num_samples = -(-self.epoch_rows // num_replicas)
        self.total_size = self.num_samples * num_replicas
        self.lengths = lengths
        self.step_rows = batch_size * num_replicas
        self.start = 0

    def order(self, epoch: int) -> Indices:
        """Return the row indices of one epoch over all ranks, (epoch_rows,): one array, rearranged in its place."""
        order = empty_indices(self.epoch_rows, self.rows)
        first = filled = 0
        for number, (rows, weight) in enumerate(self.groups):
            share = order[filled : filled + int(rows * weight + 0.5)]
            self._deal(share, first, rows, number, epoch)
            first, filled = first + rows, filled + len(share)
        if self.shuffle:
            random = np.random.default_rng([self.seed, epoch])
            random.shuffle(order)
            if self.lengths is not None:
                group_by_length(order, self.lengths, self.step_rows, random)
        return order

    def _deal(self, share: Indices, first: int, rows: int, number: int, epoch: int) -> None:
        """Fill in one source's rows for one epoch: whole passes, then the next stretch of a fixed cycle.

        Args:
            share: where they go.
            first: index of the source's first row.
            rows: of the source.
            number: of the source.
            epoch: of the run.
        """
        passes, rest = divmod(len(share), rows) if rows else (0, 0)
        for done in range(passes):
            count_up(share[done * rows : (done + 1) * rows], first)
        if rest:
            cycle = shuffled_indices(rows, np.random.default_rng([self.seed, number, 1 << 31]))
            start, stretch = epoch * rest % rows, share[passes * rows :]
            head = cycle[start : start + rest]
            stretch[: len(head)], stretch[len(head) :] = head, cycle[: rest - len(head)]
            stretch.sort()
            stretch += first

    @override
    def __iter__(self) -> Iterator[int]:
        """Yield this rank's row indices, from position ``start`` on."""
        mine = self.order(self.epoch)[self.rank :: self.num_replicas]
        missing = self.num_samples - max(len(mine), self.start)
        mine = np.ascontiguousarray(mine[self.start :])  # the others' rows are let go
        rows = (row for piece in pieces(len(mine), PIECE) for row in mine[piece].tolist())
        return chain(rows, repeat(PADDING, missing))
