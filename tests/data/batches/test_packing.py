"""Packs: every token once, few packs, and batches in which models can tell the rows apart."""

import hashlib
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_sft.data.batches.collate import PackCollator
from lightning_sft.data.batches.packing import PackedDataset, best_fit
from lightning_sft.data.storage.dataset import TokenDataset
from lightning_sft.data.types import Encoded
from lightning_sft.errors import UserError
from tests.data.batches.runs import like_gsm8k


def rows(*lengths: int, sources: list[int] | None = None) -> TokenDataset:
    """Rows whose tokens are all different; the second half of each is trained."""
    ends = np.cumsum(lengths)
    encoded = [
        Encoded(np.arange(e - n, e, dtype=np.int32), np.arange(n) >= n // 2) for n, e in zip(lengths, ends, strict=True)
    ]
    return TokenDataset(encoded, sources or [0] * len(lengths))


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=80),
    capacity=st.integers(40, 100),
    seed=st.integers(0, 2**31),
    split=st.integers(0, 80),
)
def test_packs_hold_every_token_once(lengths, capacity, seed, split):
    data = rows(*lengths, sources=[int(i >= split) for i in range(len(lengths))])
    packs = PackedDataset(data, capacity, seed)
    batch = PackCollator(pad_token_id=-7)([packs[i] for i in range(len(packs))])
    seen = batch["row"] >= 0
    assert sorted(batch["input_ids"][seen].tolist()) == list(range(sum(lengths)))
    assert (batch["input_ids"][~seen] == -7).all()
    assert seen.sum(1).max() <= capacity
    assert packs.plan.tokens == sum(lengths)
    for i, pack in enumerate(packs[i] for i in range(len(packs))):
        assert {row.source for row in pack} == {int(packs.sources[i])}
    for i, row in enumerate(data[i] for i in range(len(data))):
        at = batch["row"] == i
        assert batch["input_ids"][at].tolist() == row.ids.tolist()
        assert batch["position_ids"][at].tolist() == list(range(len(row.ids)))
        assert (batch["source"][at] == row.source).all()
        trained = [int(t) if m and p else -100 for p, (t, m) in enumerate(zip(row.ids, row.trained, strict=True))]
        assert batch["labels"][at].tolist() == trained
    assert (batch["labels"][~seen] == -100).all()
    # no more packs than first-fit's bound allows, and never two that would fit into one
    fullness = np.sort(seen.sum(1).numpy()[packs.sources == 0])
    assert len(fullness) < 2 or fullness[0] + fullness[1] > capacity


@pytest.mark.parametrize(("capacity", "efficiency"), [(512, 0.95), (1024, 0.95), (2048, 0.98)])
def test_packs_of_rows_like_gsm8k_are_full(capacity, efficiency):
    assert best_fit(np.minimum(like_gsm8k(7473), capacity), capacity).efficiency >= efficiency


def test_many_rows_are_packed_in_a_moment():
    lengths = like_gsm8k(100_000)
    start = time.process_time()
    best_fit(lengths, 2048)
    assert time.process_time() - start < 5


def test_packs_follow_the_seed():
    lengths = like_gsm8k(200)
    one, again, other = (best_fit(lengths, 1024, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.rows, again.rows)
    assert np.array_equal(one.ends, again.ends)
    assert not np.array_equal(one.rows, other.rows)


def test_packs_are_those_of_earlier_versions():
    plan = best_fit(like_gsm8k(3000), 1024, 7)
    found = hashlib.sha256(plan.rows.astype(np.int64).tobytes() + plan.ends.astype(np.int64).tobytes()).hexdigest()
    assert found[:16] == "b9b4e499b79b9144"


def test_best_fit_takes_the_fullest_pack_that_has_room():
    plan = best_fit(np.array([6, 5, 4, 3, 2]), 10)
    packs = [Counter(plan[i].tolist()) for i in range(len(plan))]
    assert sorted(tuple(sorted(pack)) for pack in packs) == [(0, 2), (1, 3, 4)]  # 6 + 4 and 5 + 3 + 2


def test_a_row_longer_than_a_pack_is_refused():
    with pytest.raises(UserError, match=r"row of 30 tokens does not fit into a pack of 20.*truncation"):
        best_fit(np.array([3, 30]), 20)


def test_batch_of_packs():
    data = rows(2, 1, 4)
    packs = [[data[0], data[1]], [data[2]], [data[-1]]]
    batch = PackCollator(pad_token_id=9)(packs)
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["input_ids"].tolist() == [[0, 1, 2, 9], [3, 4, 5, 6], [9, 9, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 1, -100, -100], [-100, -100, 5, 6], [-100] * 4]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 0], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert batch["row"].tolist() == [[0, 0, 1, -1], [2] * 4, [-1] * 4]
    assert batch["source"].tolist() == [[0, 0, 0, -1], [0] * 4, [-1] * 4]
    assert PackCollator(9, pad_to_multiple_of=8)(packs)["input_ids"].shape == (3, 8)
