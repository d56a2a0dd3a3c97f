"""The order of an epoch over ranks and sources."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_sft.data import EpochSampler


@given(rows=st.integers(1, 200), ranks=st.integers(1, 8), seed=st.integers(0, 2**31), epoch=st.integers(0, 5))
def test_every_row_once_over_all_ranks(rows, ranks, seed, epoch):
    dealt = []
    for rank in range(ranks):
        sampler = EpochSampler(range(rows), num_replicas=ranks, rank=rank, seed=seed)
        sampler.set_epoch(epoch)
        dealt.append(list(sampler))
        assert len(dealt[-1]) == len(sampler) == -(-rows // ranks)
    assert sorted(i for indices in dealt for i in indices if i >= 0) == list(range(rows))
    alone = EpochSampler(range(rows), seed=seed)
    alone.set_epoch(epoch)
    interleaved = [indices[i] for i in range(len(dealt[0])) for indices in dealt]
    assert [i for i in interleaved if i >= 0] == list(alone)


@given(rows=st.integers(1, 50), start=st.integers(0, 60))
def test_start_skips_rows(rows, start):
    sampler = EpochSampler(range(rows))
    whole = list(sampler)
    sampler.start = start
    assert list(sampler) == whole[start:]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            orders.add(tuple(EpochSampler(range(30), seed=seed).order(epoch)))
    assert len(orders) == 9


def test_without_shuffle_rows_come_in_order():
    assert list(EpochSampler(range(5), num_replicas=2, rank=1, shuffle=False)) == [1, 3, -1]


def test_weights_show_rows_as_often_as_asked():
    sampler = EpochSampler(range(17), groups=[(10, 2.0), (5, 1.0), (2, 0.5)])
    counts = Counter(sampler.order(0).tolist())
    assert [counts[i] for i in range(15)] == [2] * 10 + [1] * 5
    assert counts[15] + counts[16] == 1
    assert len(sampler) == 26


@given(rows=st.integers(1, 40), weight=st.floats(0.05, 3.0))
def test_a_fraction_goes_through_all_rows_in_turn(rows, weight):
    sampler = EpochSampler(range(rows), groups=[(rows, weight)])
    per_epoch = int(rows * weight + 0.5)
    assert sampler.epoch_rows == per_epoch
    seen = Counter(i for epoch in range(rows) for i in sampler.order(epoch).tolist())
    assert all(seen[i] == per_epoch for i in range(rows))


def order_as_it_was(groups, shuffle, seed, epoch, lengths, together):
    """What checkpoints of earlier versions count on, in whole arrays."""
    first, parts = 0, []
    for number, (rows, weight) in enumerate(groups):
        passes, rest = divmod(int(rows * weight + 0.5), rows)
        cycle = np.random.default_rng([seed, number, 1 << 31]).permutation(np.arange(rows))
        stretch = np.sort(cycle[(epoch * rest + np.arange(rest)) % rows])
        parts.append(first + np.concatenate([np.tile(np.arange(rows), passes), stretch]))
        first += rows
    order = np.concatenate(parts)
    random = np.random.default_rng([seed, epoch])
    if not shuffle:
        return order.tolist()
    order = random.permutation(order)
    if lengths is None:
        return order.tolist()
    batches = len(order) // together
    whole, left = np.split(order, [batches * together])
    pool = max(1, min(50, batches // 4)) * together
    whole = whole[np.lexsort((lengths[whole], np.arange(len(whole)) // pool))].reshape(batches, together)
    return np.concatenate([random.permutation(whole).reshape(-1), left]).tolist()


GROUP = st.tuples(st.integers(1, 60), st.sampled_from([1.0, 2.0, 0.5, 0.3, 1.7, 0.05]))


@given(
    groups=st.lists(GROUP, min_size=1, max_size=3),
    together=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 6),
    how=st.sampled_from(["sequential", "shuffled", "grouped"]),
)
def test_orders_are_those_of_earlier_versions(groups, together, seed, epoch, how):
    rows, shuffle = sum(count for count, _ in groups), how != "sequential"
    lengths = np.random.default_rng(seed).integers(1, 9, rows) if how == "grouped" else None
    sampler = EpochSampler(range(rows), groups, 1, 0, shuffle, seed, lengths, together)
    assert sampler.order(epoch).tolist() == order_as_it_was(groups, shuffle, seed, epoch, lengths, together)


@pytest.mark.parametrize(("how", "bytes_a_row"), [("shuffled", 4), ("grouped", 8), ("two ranks", 6)])
def test_an_order_takes_few_bytes_a_row(how, bytes_a_row):
    rows = 400_000
    lengths = np.full(rows, 9) if how == "grouped" else None
    sampler = EpochSampler(range(rows), None, 1 + (how == "two ranks"), 0, True, 1, lengths, 64)
    tracemalloc.start()
    next(iter(sampler))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= bytes_a_row * rows + (1 << 20)


def test_groups_must_cover_the_rows():
    with pytest.raises(ValueError, match="do not add up"):
        EpochSampler(range(5), groups=[(4, 1.0)])
