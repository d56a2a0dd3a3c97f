"""How training rows share a batch: padded, grouped by length, or packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from lightning_sft.data.batches.collate import Collator, PackCollator
from lightning_sft.data.batches.packing import PackedDataset
from lightning_sft.data.batches.sampler import EpochSampler
from lightning_sft.data.storage.dataset import SetReport, TokenDataset
from lightning_sft.errors import UserError

Batching = Literal["auto", "padded", "grouped", "packed"]


class TrainingBatches:
    """The rows of the training set as items of a loader, their order, and what makes a batch of them.

    Args:
        batching: see `SFTDataModule`.
        batch_size: items of a batch on one rank.
        max_length: the most tokens of a row, and of a pack.
        shuffle: whether to permute each epoch.
        seed: of order and packs.

    Attributes:
        kind: ``padded``, ``grouped`` or ``packed``.

    Raises:
        UserError: settings that exclude each other.
    """

    def __init__(
        self, batching: Batching, batch_size: int, max_length: int | None, shuffle: bool = True, seed: int = 0
    ) -> None:
        if batching == "packed" and max_length is None:
            raise UserError(
                "data.batching is packed without data.max_length, which is the most tokens of a pack. Set max_length "
                "(2048, say; no row may be longer, or set data.truncation too), or batching: grouped."
            )
        if batching == "grouped" and not shuffle:
            raise UserError(
                "data.batching is grouped with data.shuffle: false: rows of similar length stand together only in "
                "another order than the given one. Set shuffle: true, or batching: padded or packed."
            )
        self.kind = batching if batching != "auto" else "grouped" if shuffle else "padded"
        self.batch_size, self.max_length, self.shuffle, self.seed = batch_size, max_length, shuffle, seed
        self.items: TokenDataset | PackedDataset | None = None

    def prepare(self, rows: TokenDataset, report: SetReport) -> None:
        """Make items of the rows, and put what is known about packs into the report."""
        self.items = rows
        if self.kind == "packed":
            assert self.max_length is not None
            self.items = PackedDataset(rows, self.max_length, self.seed)
            report.packs, report.pack_efficiency = len(self.items), self.items.plan.efficiency

    def collator(self, pad_token_id: int, pad_to_multiple_of: int | None) -> Collator:
        """Return what makes a batch of items."""
        return (PackCollator if self.kind == "packed" else Collator)(pad_token_id, pad_to_multiple_of)

    def sampler(self, weights: Sequence[float], num_replicas: int, rank: int) -> EpochSampler:
        """Return the order of the items.

        Args:
            weights: how often each source is seen in an epoch, by its index.
            num_replicas: number of ranks.
            rank: this one.
        """
        assert self.items is not None
        numbers, counts = np.unique(self.items.sources, return_counts=True)
        return EpochSampler(
            self.items,
            [(int(count), weights[int(n)]) for n, count in zip(numbers, counts, strict=True)],
            num_replicas,
            rank,
            self.shuffle,
            self.seed,
            lengths=self.items.lengths if self.kind == "grouped" and isinstance(self.items, TokenDataset) else None,
            batch_size=self.batch_size,
        )

    def describe(self) -> str:
        """Return in words what a position in an epoch depends on."""
        return f"packed to {self.max_length}" if self.kind == "packed" else self.kind
