"""The training set as items of a loader, their order, and what makes a batch of them."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_sft.data.batches.collate import Collator, FlatCollator, PackCollator
from lightning_sft.data.batches.packing import PackedDataset
from lightning_sft.data.batches.sampler import EpochSampler
from lightning_sft.data.batches.settings import BatchSettings
from lightning_sft.data.indices import stretches
from lightning_sft.data.storage.dataset import SetReport, TokenDataset
from lightning_sft.errors import UserError


class TrainingBatches:
    """The rows of the training set as items of a loader, their order, and what makes a batch of them.

    Args:
        settings: order and layout.
        batch_size: items of a batch on one rank.
        max_length: the most tokens of a row, and of a pack.
        seed: of order and packs.

    Raises:
        UserError: packs without a budget.
    """

    def __init__(self, settings: BatchSettings, batch_size: int, max_length: int | None, seed: int = 0) -> None:
        if settings.order == "packed" and max_length is None:
            raise UserError(
                "data.order is packed without data.max_length, which is the most tokens of a pack. Set max_length "
                "(2048, say; no row may be longer, or set data.truncation too), or another order: shuffled wastes "
                "nothing on padding either, where the layout is flat."
            )
        self.settings = settings
        self.batch_size, self.max_length, self.seed = batch_size, max_length, seed
        self.items: TokenDataset | PackedDataset | None = None

    def prepare(self, rows: TokenDataset, report: SetReport) -> None:
        """Make items of the rows, and put what is known about packs into the report."""
        self.items = rows
        if self.settings.order == "packed":
            assert self.max_length is not None
            self.items = PackedDataset(rows, self.max_length, self.seed)
            report.packs, report.pack_efficiency = len(self.items), self.items.plan.efficiency

    def collator(
        self,
        pad_token_id: int,
        pad_to_multiple_of: int | None,
        source_weights: Sequence[float] | None = None,
        *,
        flat: bool,
    ) -> Collator:
        """Return what makes a batch of items.

        Args:
            pad_token_id: what stands on padded positions.
            pad_to_multiple_of: round lengths up to a multiple of this.
            source_weights: weight of each source's tokens in the loss, by its index; None for 1.
            flat: whether the items of a batch lie end to end; packs keep a sequence each otherwise.
        """
        kind = FlatCollator if flat else PackCollator if self.settings.order == "packed" else Collator
        return kind(pad_token_id, pad_to_multiple_of, source_weights)

    def sampler(self, weights: Sequence[float], num_replicas: int, rank: int) -> EpochSampler:
        """Return the order of the items.

        Args:
            weights: how often each source is seen in an epoch, by its index.
            num_replicas: number of ranks.
            rank: this one.
        """
        assert self.items is not None
        lengths = self.items.lengths if isinstance(self.items, TokenDataset) else None
        return EpochSampler(
            self.items,
            [(end - start, weights[source]) for source, start, end in stretches(self.items.sources)],
            num_replicas,
            rank,
            self.settings.permuted,
            self.seed,
            lengths=lengths if self.settings.order == "grouped" else None,
            batch_size=self.batch_size,
        )

    def describe(self) -> str:
        """Return in words what a position in an epoch depends on."""
        return self.settings.describe(self.max_length)
