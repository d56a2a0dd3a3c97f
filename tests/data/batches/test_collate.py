"""Batches: padding, labels, attention."""

import numpy as np
import torch

from lightning_sft.data.batches.collate import Collator
from lightning_sft.data.storage.dataset import TokenDataset
from lightning_sft.data.types import Encoded


def rows(*lengths: int) -> TokenDataset:
    encoded = [Encoded(np.arange(1, n + 1, dtype=np.int32), np.arange(n) >= n // 2) for n in lengths]
    return TokenDataset(encoded, [0] * len(lengths))


def test_batch():
    data = rows(2, 4)
    batch = Collator(pad_token_id=4)([data[0], data[1], data[-1]])
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["input_ids"].tolist() == [[1, 2, 4, 4], [1, 2, 3, 4], [4, 4, 4, 4]]
    assert batch["labels"].tolist() == [[-100, 2, -100, -100], [-100, -100, 3, 4], [-100] * 4]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch["row"].tolist() == [0, 1, -1]
    assert batch["source"].tolist() == [0, 0, -1]


def test_pad_to_multiple_of():
    data = rows(3, 9)
    assert Collator(0, pad_to_multiple_of=8)([data[0], data[1]])["input_ids"].shape == (2, 16)
    assert Collator(0, pad_to_multiple_of=8)([data[-1]])["input_ids"].shape == (1, 8)
