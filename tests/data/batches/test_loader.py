"""The position in a shuffled epoch is part of the checkpoint; nothing is repeated, nothing lost."""

import pytest
import torch

from lightning_sft.errors import UserError
from tests.data.batches.runs import ROWS, data_module, fit
from tests.data.helpers import write_jsonl
from tests.toys import toy_tokenizer

# each run of these tests keeps its checkpoints in a folder of its own
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def rows_of(lines: list[str]) -> list[int]:
    return [int(row) for line in lines for row in line.split(":")[-1].split()]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 5, 8, 9, 16])
def test_resume_continues_with_the_next_unseen_row(tmp_path, stop, workers):
    data = {"num_workers": workers}
    whole = fit(tmp_path, "whole", data=data)
    assert len(whole) == 24
    assert fit(tmp_path, "first", steps=stop, data=data) == whole[:stop]
    rest = fit(tmp_path, "rest", resume=tmp_path / "first" / f"step={stop}.ckpt", data=data)
    assert rest == whole[stop:]
    for epoch in range(3):
        assert sorted(rows_of(whole[8 * epoch : 8 * epoch + 8])) == list(range(ROWS))
    assert rows_of(whole[:8]) != rows_of(whole[8:16])


@pytest.mark.parametrize("limit", [5, 1.0])
def test_resume_from_the_end_of_an_epoch(tmp_path, limit):
    whole = fit(tmp_path, "whole", limit_train_batches=limit)
    first = fit(tmp_path, "first", epochs=1, limit_train_batches=limit)
    rest = fit(tmp_path, "rest", resume=tmp_path / "first" / "epoch-epoch=0.ckpt", limit_train_batches=limit)
    assert first + rest == whole


def test_resume_mid_epoch_with_validation_inside_the_epoch(tmp_path):
    options = {"data": {"val": str(tmp_path / "rows.jsonl")}, "val_check_interval": 2}
    data_module(tmp_path)
    whole = fit(tmp_path, "whole", **options)
    fit(tmp_path, "first", steps=6, **options)
    assert fit(tmp_path, "rest", resume=tmp_path / "first" / "step=6.ckpt", **options) == whole[6:]


@pytest.mark.parametrize(
    ("change", "name"),
    [({"batch_size": 4}, "batch_size 3 (now 4)"), ({"seed": 1}, "seed 0 (now 1)"), ({"shuffle": False}, "shuffle")],
)
def test_resume_with_other_settings_is_refused_by_name(tmp_path, change, name):
    fit(tmp_path, "first", steps=2)
    with pytest.raises(UserError, match=name.replace("(", r"\(").replace(")", r"\)")):
        fit(tmp_path, "rest", resume=tmp_path / "first" / "step=2.ckpt", data=change)


def test_resume_with_other_data_is_refused(tmp_path):
    fit(tmp_path, "first", steps=2)
    rows = [{"prompt": f"question {i}", "completion": f"other {i}"} for i in range(ROWS)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match="data '"):
        fit(tmp_path, "rest", resume=tmp_path / "first" / "step=2.ckpt")


@pytest.mark.ranks
def test_two_ranks_share_an_epoch_and_resume(tmp_path):
    two = {"devices": 2, "strategy": "ddp_fork"}
    data = {"val": str(tmp_path / "rows.jsonl"), "num_workers": 1}
    data_module(tmp_path)
    whole = fit(tmp_path, "whole", epochs=2, data=data, **two)
    other = (tmp_path / "whole" / "rank1.txt").read_text().splitlines()
    assert len(whole) == len(other) == 8
    for epoch in (slice(0, 4), slice(4, 8)):
        seen = rows_of(whole[epoch]) + rows_of(other[epoch])
        assert sorted(seen) == [-1, *range(ROWS)]
    validated = rows_of((tmp_path / "whole" / "val0.txt").read_text().splitlines()[1:5])
    assert len(validated) == 12
    fit(tmp_path, "first", steps=3, data=data, **two)
    rest = fit(tmp_path, "rest", epochs=2, data=data, resume=tmp_path / "first" / "step=3.ckpt", **two)
    assert rest == whole[3:]
    assert (tmp_path / "rest" / "rank1.txt").read_text().splitlines() == other[3:]
    with pytest.raises(UserError, match="world_size 2"):
        fit(tmp_path, "alone", resume=tmp_path / "first" / "step=3.ckpt", data={"num_workers": 1})


def test_the_loader_draws_nothing_from_the_global_random_stream(tmp_path):
    data = data_module(tmp_path, tokenizer=toy_tokenizer(), val_split=3, num_workers=1)
    data.setup("fit")
    before = torch.random.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert list(loader)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_state_holds_numbers_and_strings_alone(tmp_path):
    data = data_module(tmp_path, tokenizer=toy_tokenizer())
    data.setup("fit")
    loader = data.train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    assert state["batches"] == 1
    assert all(type(value) in (int, str) for value in state.values())


def test_overfit_batches_uses_the_same_rows_each_epoch(tmp_path):
    lines = fit(tmp_path, "overfit", epochs=2, overfit_batches=2)
    assert rows_of(lines[:2]) == rows_of(lines[2:]) == [0, 1, 2, 3, 4, 5]
