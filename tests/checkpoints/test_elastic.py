"""Positions under other sizes: what is left of an epoch is what was not seen, on any number of ranks."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from lightning_sft.checkpoints import elastic
from lightning_sft.checkpoints.state import rng_of_rank, rng_state, set_rng_state
from lightning_sft.data.batches.sampler import EpochSampler
from lightning_sft.data.types import PADDING
from lightning_sft.errors import UserError

#: ranks, batch size, accumulation: 12 rows a step each
SIZES = [(1, 12, 1), (1, 3, 4), (2, 6, 1), (2, 1, 6), (3, 4, 1), (4, 1, 3), (6, 2, 1)]


def facts(ranks: int, batch_size: int, accumulate: object) -> dict[str, Any]:
    return {
        "world_size": ranks,
        "data_parallel_size": ranks,
        "accumulate_grad_batches": accumulate,
        "batch_size": batch_size,
        "optimizer": "SGD",
    }


def checkpoint(rows: int, step: int, ranks: int, batch_size: int, accumulate: int, epochs: int = 2) -> dict[str, Any]:
    """What Lightning and the data module store behind a step of the third epoch, on_train_batch_end."""
    whole = -(-rows // (ranks * batch_size))
    batches = min(step * accumulate, whole)
    position = {
        "epoch": epochs,
        "batches": batches,
        "order": "shuffled",
        "batch_size": batch_size,
        "world_size": ranks,
        "rows": rows,
        "seed": 0,
        "data": "x",
    }
    current = {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
    total = {name: count + epochs * whole for name, count in current.items()}
    progress = {"total": total, "current": current, "is_last_batch": batches == whole}
    loops = {"epoch_loop.batch_progress": progress, "state_dict": {"combined_loader": [dict(position)]}}
    return {"loops": {"fit_loop": loops}, "SFTDataModule": position, "state_dict": {"a": torch.zeros(2)}}


def left(rows: int, ranks: int, batch_size: int, batches: int) -> list[list[int]]:
    """The rows that a resumed epoch still reads, all ranks' of a batch together."""
    found: list[list[int]] = []
    for rank in range(ranks):
        sampler = EpochSampler(range(rows), None, ranks, rank, True, 0)
        sampler.set_epoch(2)
        sampler.start = batches * batch_size
        own = list(sampler)
        for number, start in enumerate(range(0, len(own), batch_size)):
            found += [[]] if number == len(found) else []
            found[number] += [row for row in own[start : start + batch_size] if row != PADDING]
    return found


@pytest.mark.parametrize("rows", [12, 47, 60, 61])
def test_what_is_left_is_what_was_not_seen(rows: int) -> None:
    order = EpochSampler(range(rows), None, 1, 0, True, 0).order(2).tolist()
    steps = -(-rows // 12)
    for before, now in itertools.permutations(SIZES, 2):
        for step in range(1, steps + 1):
            saved = checkpoint(rows, step, *before)
            assert elastic.adapt(saved, facts(*before), facts(*now), 0)
            assert saved == {**checkpoint(rows, step, *now), "state_dict": saved["state_dict"]}
            remaining = left(rows, now[0], now[1], saved["SFTDataModule"]["batches"])
            for number in range(steps - step):  # the same rows in each step that is left
                own = itertools.chain(*remaining[number * now[2] : (number + 1) * now[2]])
                start = (step + number) * 12
                assert sorted(own) == sorted(order[start : start + 12])


def test_the_same_sizes_change_nothing() -> None:
    saved = checkpoint(47, 2, 2, 6, 1)
    before = copy.deepcopy({k: v for k, v in saved.items() if k != "state_dict"})
    assert not elastic.adapt(saved, facts(2, 6, 1), facts(2, 6, 1), 0)
    assert {k: v for k, v in saved.items() if k != "state_dict"} == before


@pytest.mark.parametrize(
    ("now", "open_micro_batches", "order", "message"),
    [
        ((2, 12, 1), 0, "shuffled", r"steps have 12 rows, and this run\'s would have 24.*data.batch_size: 6"),
        ((2, 3, 1), 0, "shuffled", r"would have 6.*Set trainer.accumulate_grad_batches: 2. Or start a new run"),
        ((5, 4, 1), 0, "shuffled", "Set the number of devices to a divisor of 12"),
        ((2, 6, 1), 3, "shuffled", r"in the middle of an optimizer step.*Resume from last.ckpt"),
        ((2, 3, 2), 0, "grouped, 1", r"order: grouped, where the 12 rows .* would be 6. Set data.batch_size: 6"),
        ((2, 6, "{0: 1, 4: 2}"), 0, "shuffled", "the accumulation changes during the run"),
    ],
)
def test_what_cannot_be_turned_is_refused_with_the_way_out(
    now: tuple[int, int, object], open_micro_batches: int, order: str, message: str
) -> None:
    saved = checkpoint(47, 2, 1, 12, 1)
    for position in (saved["SFTDataModule"], saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]):
        position["order"] = order
    with pytest.raises(UserError, match=message):
        elastic.adapt(saved, facts(1, 12, 1), facts(*now), open_micro_batches)


def test_other_data_modules_have_no_position() -> None:
    saved = checkpoint(47, 2, 1, 12, 1)
    del saved["SFTDataModule"], saved["loops"]["fit_loop"]["state_dict"]
    with pytest.raises(UserError, match="the data are not an SFTDataModule's"):
        elastic.adapt(saved, facts(1, 12, 1), facts(2, 6, 1), 0)


def test_a_new_rank_has_streams_of_its_own() -> None:
    before = rng_state()
    states = [before]
    first, third = rng_of_rank(states, 1), rng_of_rank(states, 3)
    assert rng_of_rank(states, 0) is before
    draws = []
    for state in (before, first, third, first):
        set_rng_state(state)
        draws.append((float(torch.rand(())), float(np.random.rand())))
    assert draws[1] == draws[3]
    assert len(set(draws)) == 3
    set_rng_state(before)
