"""Rows -> one batch of tensors, padded on the right to the longest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sft.data.dataset import Row

IGNORED = -100
"""The label of a position that is not trained, as everywhere in Hugging Face's libraries."""


class Collator:
    """Pads rows to the batch's longest.

    Labels come from the rows' masks and the attention mask from their lengths, so that the padding token may be any,
    the end-of-turn token included.

    Args:
        pad_token_id: what stands on padded positions.
        pad_to_multiple_of: round the length up to a multiple of this.
    """

    def __init__(self, pad_token_id: int, pad_to_multiple_of: int | None = None) -> None:
        self.pad_token_id = pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of or 1

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ``labels`` (batch, length), ``row``, ``source`` (batch,), int64.

        ``labels[t]`` is ``input_ids[t]`` where trained (not shifted), else -100. A padding row (index -1) is one
        attended and untrained token: a row without any attended position would make NaN in some attention kernels.
        """
        multiple = self.pad_to_multiple_of
        length = -(-max(max(len(row.ids), 1) for row in rows) // multiple) * multiple
        input_ids = torch.full((len(rows), length), self.pad_token_id, dtype=torch.int64)
        labels = torch.full((len(rows), length), IGNORED, dtype=torch.int64)
        attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
        for i, row in enumerate(rows):
            size = len(row.ids)
            ids = torch.as_tensor(row.ids, dtype=torch.int64)
            input_ids[i, :size] = ids
            labels[i, :size] = torch.where(torch.as_tensor(row.trained), ids, IGNORED)
            attention_mask[i, : max(size, 1)] = 1
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "row": torch.tensor([row.index for row in rows], dtype=torch.int64),
            "source": torch.tensor([row.source for row in rows], dtype=torch.int64),
        }
