"""Best-fit packing: several rows behind each other in one sequence, each row whole and in one pack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_sft.data.indices import PIECE, Indices, empty_indices, shuffled_indices, stretches
from lightning_sft.data.spool import pieces
from lightning_sft.data.storage.dataset import Row, TokenDataset
from lightning_sft.data.types import PADDING
from lightning_sft.errors import UserError

Pack = list[Row]
"""The rows of one pack, in the order in which they stand."""


@dataclass(frozen=True)
class PackPlan:
    """Which rows stand in which pack.

    Args:
        rows: (rows,) indices of the rows, pack after pack.
        ends: (packs,) where each pack ends in ``rows``.
        capacity: the most tokens of a pack.
        tokens: tokens of all packs.
    """

    rows: Indices
    ends: NDArray[np.int64]
    capacity: int
    tokens: int

    def __len__(self) -> int:
        """Return the number of packs."""
        return len(self.ends)

    def __getitem__(self, pack: int) -> Indices:
        """Return the rows of one pack."""
        return self.rows[int(self.ends[pack - 1]) if pack else 0 : int(self.ends[pack])]

    @property
    def efficiency(self) -> float:
        """Tokens / (packs * capacity), 0 to 1."""
        return self.tokens / max(len(self) * self.capacity, 1)


def best_fit(lengths: NDArray[np.int64], capacity: int, seed: int = 0) -> PackPlan:
    """Pack rows by best-fit decreasing: the longest row first, each into the fullest pack that has room for it.

    Best-fit decreasing needs at most 11/9 of the fewest packs possible, plus one (Johnson, "Near-optimal bin packing
    algorithms", 1973). The packs with room are kept by their room; the fullest that fits is the lowest bit of a mask,
    so that the time grows with the number of rows.

    Args:
        lengths: (rows,) tokens of each row, at least 1.
        capacity: the most tokens of a pack.
        seed: rows of the same length take their turn in an order drawn from it, as do the packs and the rows in each.

    Raises:
        UserError: a row is longer than a pack.
    """
    if len(lengths) and lengths.max() > capacity:
        raise UserError(
            f"A row of {lengths.max()} tokens does not fit into a pack of {capacity}: under order: packed, no row "
            "may be longer than max_length. Raise max_length, or set data.truncation: drop, left, right or "
            "keep_completion."
        )
    random = np.random.default_rng([seed, len(lengths)])
    longest_first = shuffled_indices(len(lengths), random)
    longest_first = longest_first[np.argsort(-lengths[longest_first], kind="stable")]
    pack_of, packs = empty_indices(len(lengths), len(lengths)), 0
    with_room: defaultdict[int, list[int]] = defaultdict(list)  # by room in tokens: packs
    rooms = 0  # bit r: some pack has room r
    for piece in pieces(len(lengths), PIECE):
        chosen: list[int] = []
        for length in lengths[longest_first[piece]].tolist():
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                pack = with_room[room].pop()
                if not with_room[room]:
                    rooms ^= 1 << room
            else:
                room, pack = capacity, packs
                packs += 1
            chosen.append(pack)
            left = room - length
            with_room[left].append(pack)
            rooms |= 1 << left
        pack_of[piece] = chosen
    order = random.permutation(packs)
    sizes = np.bincount(pack_of, minlength=packs)
    starts = np.cumsum(sizes) - sizes
    by_pack = longest_first[np.argsort(pack_of, kind="stable")]
    ends = np.cumsum(sizes[order])
    for pack, end in zip(order.tolist(), ends.tolist(), strict=True):
        inside = by_pack[starts[pack] : starts[pack] + sizes[pack]]
        random.shuffle(inside)
        longest_first[end - len(inside) : end] = inside
    return PackPlan(longest_first, ends, capacity, int(lengths.sum()))


class PackedDataset(Dataset[Pack]):
    """The rows of a set in packs, each of one source.

    Packs are made once, of one source each: a source's weight then holds for its packs as it holds for its rows, the
    number of batches is the same in each epoch, and a position in the epoch is a number of packs. Their order is drawn
    anew for each epoch.

    Args:
        dataset: the rows, those of one source side by side.
        capacity: the most tokens of a pack.
        seed: see `best_fit`.

    Attributes:
        plan: the packs, those of one source side by side.
        sources: (packs,) source of each.
    """

    def __init__(self, dataset: TokenDataset, capacity: int, seed: int = 0) -> None:
        self.dataset = dataset
        sources, plans = [], []
        for source, first, end in stretches(dataset.sources):
            sources.append(source)
            plans.append((first, best_fit(dataset.lengths[first:end], capacity, seed)))
        self.plan = _joined(plans, capacity)
        self.sources = np.repeat(np.array(sources, np.int64), [len(plan) for _, plan in plans])

    def __len__(self) -> int:
        return len(self.plan)

    @override
    def __getitem__(self, index: int) -> Pack:
        """Return pack ``index``; `PADDING` gives a pack of one empty row."""
        rows: Sequence[int] = [PADDING] if index == PADDING else self.plan[index].tolist()
        return [self.dataset[row] for row in rows]


def _joined(plans: Sequence[tuple[int, PackPlan]], capacity: int) -> PackPlan:
    """Return the plans of all sources as one; each comes with the index of its source's first row."""
    if len(plans) == 1:
        return plans[0][1]
    total = sum(len(plan.rows) for _, plan in plans)
    rows = empty_indices(total, total)
    for first, plan in plans:
        np.add(plan.rows, first, out=rows[first : first + len(plan.rows)], dtype=rows.dtype)
    ends = [first + plan.ends for first, plan in plans]
    return PackPlan(
        rows,
        np.concatenate(ends) if ends else np.empty(0, np.int64),
        capacity,
        sum(plan.tokens for _, plan in plans),
    )
