"""The order of rows: a permutation of each epoch, dealt to the ranks, no row repeated or lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler
from typing_extensions import override

from lightning_sft.data.batches.grouping import group_by_length
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
        if sum(rows for rows, _ in self.groups) != len(dataset):
            raise ValueError(f"groups {self.groups} do not add up to the dataset's {len(dataset)} rows")
        self.epoch_rows = sum(int(rows * weight + 0.5) for rows, weight in self.groups)
        self.num_samples = -(-self.epoch_rows // num_replicas)
        self.total_size = self.num_samples * num_replicas
        self.lengths = lengths
        self.step_rows = batch_size * num_replicas
        self.start = 0

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the row indices of one epoch over all ranks, (epoch_rows,)."""
        first, parts = 0, []
        for number, (rows, weight) in enumerate(self.groups):
            parts.append(first + self._share(rows, weight, number, epoch))
            first += rows
        order = np.concatenate(parts) if parts else np.empty(0, np.int64)
        if not self.shuffle:
            return order
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(order)
        return order if self.lengths is None else group_by_length(order, self.lengths, self.step_rows, random)

    def _share(self, rows: int, weight: float, number: int, epoch: int) -> NDArray[np.int64]:
        """Return one source's rows for one epoch: whole passes, then the next stretch of a fixed cycle."""
        total = int(rows * weight + 0.5)
        every = np.arange(rows, dtype=np.int64)
        passes, rest = divmod(total, rows) if rows else (0, 0)
        if not rest:
            return np.tile(every, passes)
        cycle = np.random.default_rng([self.seed, number, 1 << 31]).permutation(every)
        stretch = cycle[(epoch * rest + np.arange(rest)) % rows]
        return np.concatenate([np.tile(every, passes), np.sort(stretch)])

    @override
    def __iter__(self) -> Iterator[int]:
        """Yield this rank's row indices, from position ``start`` on."""
        order = self.order(self.epoch)
        padded = np.concatenate([order, np.full(self.total_size - len(order), PADDING, np.int64)])
        mine = padded[self.rank :: self.num_replicas][self.start :].copy()  # the others' rows are let go
        return (index for start in range(0, len(mine), PIECE) for index in mine[start : start + PIECE].tolist())
