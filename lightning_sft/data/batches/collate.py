"""Rows, or packs of rows -> one batch: padded on the right to the longest, or laid end to end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_sft.data.batches.packing import Pack
from lightning_sft.data.storage.dataset import Row
from lightning_sft.scores import IGNORED


class Collator:
    """Pads rows to the batch's longest.

    Labels come from the rows' masks and the attention mask from their lengths, so that the padding token may be any,
    the end-of-turn token included.

    Args:
        pad_token_id: what stands on padded positions.
        pad_to_multiple_of: round the length up to a multiple of this.
        source_weights: what the losses of each source's tokens are multiplied by, by its index; None for 1.
    """

    def __init__(
        self, pad_token_id: int, pad_to_multiple_of: int | None = None, source_weights: Sequence[float] | None = None
    ) -> None:
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of or 1
        self.source_weights = source_weights

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``labels`` (batch, length), ``row``, ``source`` (batch,), int64.

        ``labels[t]`` is ``input_ids[t]`` where trained (not shifted), else -100. A padding row (index -1) is one
        attended and untrained token: a row without any attended position would make NaN in some attention kernels.
        ``loss_weight``, (batch, length), fp32, where rows or sources have weights: what the loss of each label is
        multiplied by.
        """
        length = self._length(len(row.ids) for row in rows)
        input_ids = torch.full((len(rows), length), self.pad_token_id, dtype=torch.int64)
        labels = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
        attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
        for i, row in enumerate(rows):
            size = len(row.ids)
            ids = torch.as_tensor(row.ids, dtype=torch.int64)
            input_ids[i, :size] = ids
            labels[i, :size] = torch.where(torch.as_tensor(row.trained), ids, IGNORED)
            attention_mask[i, : max(size, 1)] = 1
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "row": torch.tensor([row.index for row in rows], dtype=torch.int64),
            "source": torch.tensor([row.source for row in rows], dtype=torch.int64),
        }
        if self._weighs(rows):
            batch["loss_weight"] = torch.ones((len(rows), length))
            for i, row in enumerate(rows):
                batch["loss_weight"][i, : len(row.ids)] = self._weights(row)
        return batch

    def _weighs(self, rows: Sequence[Row]) -> bool:
        """Return whether batches have weights: the same for all batches of a set."""
        return self.source_weights is not None or any(row.weights is not None for row in rows)

    def _weights(self, row: Row) -> Tensor:
        """Return the weights of a row's tokens, (length,)."""
        weights = torch.ones(len(row.ids)) if row.weights is None else torch.as_tensor(row.weights)
        if self.source_weights is None or row.source < 0:
            return weights
        return weights * self.source_weights[row.source]

    def _length(self, lengths: Iterable[int]) -> int:
        """Return the length of a batch of rows, at least 1."""
        multiple = self.pad_to_multiple_of
        return -(-max(1, *lengths) // multiple) * multiple


class PackCollator(Collator):
    """Puts the rows of each pack behind each other, and pads packs to the batch's longest.

    There is no attention mask: models tell the rows apart by their positions, and only without one. What is left of a
    pack's length is one more row of padding, which no other row sees.
    """

    @override
    def __call__(self, packs: Sequence[Pack]) -> dict[str, Tensor]:  # type: ignore[override]  # packs, not rows
        """Return ``input_ids``, ``labels``, ``position_ids``, ``row`` and ``source``, (batch, length) each, int64.

        Positions begin at 0 in each row. The first label of a row is -100: what stands before it is another row.
        ``row`` and ``source`` are those of each token; -1 on padding.
        """
        length = self._length(sum(len(row.ids) for row in pack) for pack in packs)
        fill = {"input_ids": self.pad_token_id, "labels": IGNORED, "position_ids": 0, "row": -1, "source": -1}
        batch = {key: torch.full((len(packs), length), value, dtype=torch.int64) for key, value in fill.items()}
        for i, pack in enumerate(packs):
            start = 0
            for row in pack:
                at = slice(start, start + len(row.ids))
                ids = torch.as_tensor(row.ids, dtype=torch.int64)
                batch["input_ids"][i, at] = ids
                batch["labels"][i, at] = torch.where(torch.as_tensor(row.trained), ids, IGNORED)
                batch["labels"][i, start : start + 1] = IGNORED
                batch["position_ids"][i, at] = torch.arange(len(ids))
                batch["row"][i, at], batch["source"][i, at] = row.index, row.source
                start = at.stop
            batch["position_ids"][i, start:] = torch.arange(length - start)
        rows = [row for pack in packs for row in pack]
        if self._weighs(rows):
            batch["loss_weight"] = torch.ones((len(packs), length))
            for i, pack in enumerate(packs):
                weights = torch.cat([self._weights(row) for row in pack]) if pack else torch.empty(0)
                batch["loss_weight"][i, : len(weights)] = weights
        return batch


class FlatCollator(Collator):
    """Lays the rows of a batch, or those of its packs, end to end in one sequence.

    There is no padding but for what ``pad_to_multiple_of`` asks, which is one more document, and no attention mask:
    documents are told apart by their boundaries, which come along, so that no layer has to look for them.
    """

    @override
    def __call__(self, items: Sequence[Row | Pack]) -> dict[str, Any]:
        """Return a batch of one sequence; int64 unless said otherwise.

        ``input_ids``, ``labels``, ``position_ids``, ``row`` and ``source``, (1, length): positions begin at 0 in each
        row, the first label of a row is -100, and ``row`` and ``source`` are those of each token, -1 on padding.
        ``cu_seq_lens``, (documents + 1,), int32: where documents begin, and where the last one ends. ``max_length``:
        tokens of the longest document, a plain number, as is ``largest_label``. ``supervised``, (supervised tokens,):
        the positions whose hidden states predict a label, which stands one position further.
        """
        rows = [row for item in items for row in (item if isinstance(item, list) else [item]) if len(row.ids)]
        sizes = np.array([len(row.ids) for row in rows], dtype=np.int64)
        total = int(sizes.sum())
        length = self._length([total])
        documents = np.append(sizes, length - total) if length > total else sizes
        ends = np.cumsum(documents)
        starts = ends - documents
        ids = np.full(length, self.pad_token_id, dtype=np.int64)
        labels = np.full(length, IGNORED, dtype=np.int64)
        of_token = np.full((2, length), -1, dtype=np.int64)
        if rows:
            ids[:total] = np.concatenate([row.ids for row in rows])
            labels[:total] = np.where(np.concatenate([row.trained for row in rows]), ids[:total], IGNORED)
            labels[starts[: len(rows)]] = IGNORED
            of_token[:, :total] = np.repeat([[row.index for row in rows], [row.source for row in rows]], sizes, axis=1)
        sequences = {
            "input_ids": ids,
            "labels": labels,
            "position_ids": np.arange(length) - np.repeat(starts, documents),
            "row": of_token[0],
            "source": of_token[1],
        }
        return {
            **{key: torch.from_numpy(value)[None] for key, value in sequences.items()},
            "cu_seq_lens": torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
            "max_length": int(documents.max()),
            "largest_label": int(labels.max()),
            "supervised": torch.from_numpy(np.flatnonzero(labels[1:] != IGNORED)),
            **({"loss_weight": self._end_to_end(rows, length)} if self._weighs(rows) else {}),
        }

    def _end_to_end(self, rows: Sequence[Row], length: int) -> Tensor:
        """Return the weights of rows behind each other, (1, length)."""
        weights = torch.ones((1, length))
        if rows:
            whole = torch.cat([self._weights(row) for row in rows])
            weights[0, : len(whole)] = whole
        return weights
