"""Padded, grouped or packed: the same rows in other company, and a position that survives."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_sft.data import EpochSampler, SFTDataModule, Source
from lightning_sft.data.batches.grouping import group_by_length
from lightning_sft.data.inspect import inspect
from lightning_sft.errors import UserError
from tests.data.batches.runs import ROWS, Recorder, fit, like_gsm8k
from tests.data.helpers import write_jsonl
from tests.toys import toy_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


@pytest.fixture
def folder(tmp_path):
    """Rows of very different lengths, where the tests of the loader look for them."""
    write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"q {i}", "completion": "a" * (1 + i * 7 % 40)} for i in range(ROWS)]
    )
    return tmp_path


def tokens_of(lines: list[str]) -> list[int]:
    """Rows that a run saw; under packing each as often as it has tokens."""
    return [int(row) for line in lines for row in re.findall(r"-?\d+", line.split(":")[-1])]


def rows_seen(lines: list[str]) -> list[int]:
    """Rows that a run saw: in a pack, once for each stretch of equal numbers."""
    tokens = tokens_of(lines)
    return [row for i, row in enumerate(tokens) if row >= 0 and (i == 0 or tokens[i - 1] != row)]


@given(
    rows=st.integers(1, 300),
    batch=st.integers(1, 5),
    ranks=st.integers(1, 4),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_grouping_keeps_every_row(rows, batch, ranks, epoch, seed):
    lengths = np.random.default_rng(seed).integers(1, 50, rows)
    dealt = []
    for rank in range(ranks):
        sampler = EpochSampler(range(rows), None, ranks, rank, seed=seed, lengths=lengths, batch_size=batch)
        sampler.set_epoch(epoch)
        dealt.append(list(sampler))
    assert sorted(i for indices in dealt for i in indices if i >= 0) == list(range(rows))
    assert len({len(indices) for indices in dealt}) == 1


def test_grouping_saves_padding_and_stays_random():
    lengths = like_gsm8k(7473)
    random = np.random.default_rng(0)
    order = random.permutation(len(lengths))

    def padding(order: np.ndarray) -> float:
        batches = lengths[order[: len(order) // 8 * 8]].reshape(-1, 8)
        return 1 - batches.sum() / (8 * batches.max(1)).sum()

    grouped = group_by_length(order, lengths, 8, random)
    assert padding(order) > 0.2
    assert padding(grouped) < 0.04
    assert sorted(grouped) == sorted(order)
    # the lengths of neighbouring batches do not follow each other
    means = lengths[grouped[: 933 * 8]].reshape(-1, 8).mean(1)
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.15
    again = group_by_length(random.permutation(order), lengths, 8, random)
    assert set(map(frozenset, grouped[:7464].reshape(-1, 8))) != set(map(frozenset, again[:7464].reshape(-1, 8)))


@pytest.mark.parametrize(("batching", "workers"), [("grouped", 2), ("packed", 0), ("packed", 2)])
@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_resume_continues_with_the_next_unseen_row(folder, batching, workers, stop):
    data = {"batching": batching, "max_length": 120, "num_workers": workers, "batch_size": 2}
    whole = fit(folder, "whole", epochs=2, data=data)
    steps = len(whole) // 2
    assert steps > 3
    assert fit(folder, "first", epochs=2, steps=stop, data=data) == whole[:stop]
    rest = fit(folder, "rest", epochs=2, resume=folder / "first" / f"step={stop}.ckpt", data=data)
    assert rest == whole[stop:]
    for epoch in (whole[:steps], whole[steps:]):
        assert sorted(rows_seen(epoch)) == list(range(ROWS))
    assert rows_seen(whole[:steps]) != rows_seen(whole[steps:])


@pytest.mark.parametrize("batching", ["padded", "grouped", "packed"])
def test_resume_of_a_run_that_counts_its_steps_beforehand(folder, batching, monkeypatch):
    """Schedules ask for the number of steps; Lightning then makes the loader before it restores a checkpoint."""
    configure_optimizers = Recorder.configure_optimizers

    def counting(self: Recorder) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 4
        return configure_optimizers(self)

    monkeypatch.setattr(Recorder, "configure_optimizers", counting)
    data = {"batching": batching, "max_length": 120, "batch_size": 2}
    whole = fit(folder, "whole", epochs=2, data=data)
    fit(folder, "first", epochs=2, data=data, limit_train_batches=4)
    rest = fit(folder, "rest", epochs=2, resume=folder / "first" / "step=3.ckpt", data=data)
    assert rest == whole[3:]


@pytest.mark.ranks
@pytest.mark.parametrize("batching", ["grouped", "packed"])
def test_two_ranks_share_an_epoch_and_resume(folder, batching):
    two = {"devices": 2, "strategy": "ddp_fork"}
    data = {"batching": batching, "max_length": 120, "num_workers": 1, "batch_size": 1 if batching == "packed" else 3}
    whole = fit(folder, "whole", epochs=2, data=data, **two)
    other = (folder / "whole" / "rank1.txt").read_text().splitlines()
    steps = len(whole) // 2
    assert len(whole) == len(other)
    for epoch in (slice(0, steps), slice(steps, 2 * steps)):
        assert sorted(rows_seen(whole[epoch]) + rows_seen(other[epoch])) == list(range(ROWS))
    fit(folder, "first", steps=2, data=data, **two)
    rest = fit(folder, "rest", epochs=2, data=data, resume=folder / "first" / "step=2.ckpt", **two)
    assert rest == whole[2:]
    assert (folder / "rest" / "rank1.txt").read_text().splitlines() == other[2:]


@pytest.mark.parametrize(
    ("change", "name"),
    [({"batching": "padded"}, r"batching 'packed to 120' \(now 'padded'\)"), ({"max_length": 140}, "packed to 140")],
)
def test_resume_with_other_batching_is_refused(folder, change, name):
    data = {"batching": "packed", "max_length": 120, "batch_size": 2}
    fit(folder, "first", steps=2, data=data)
    with pytest.raises(UserError, match=name):
        fit(folder, "rest", resume=folder / "first" / "step=2.ckpt", data={**data, **change})


def test_overfit_batches_repeats_packs(folder):
    lines = fit(folder, "overfit", epochs=2, overfit_batches=2, data={"batching": "packed", "max_length": 120})
    assert rows_seen(lines[:2]) == rows_seen(lines[2:])
    assert len(rows_seen(lines[:2])) > 6


def module(folder, **options) -> SFTDataModule:
    return SFTDataModule(**{"train": str(folder / "rows.jsonl"), "tokenizer": toy_tokenizer(), **options})


def test_weights_hold_for_packs(folder):
    source = {"path": str(folder / "rows.jsonl")}
    data = module(
        folder,
        train=[Source(**source, name="a", weight=2.0), Source(**source, name="b", weight=0.5)],
        batching="packed",
        max_length=120,
        batch_size=1,
    )
    data.setup("fit")
    loader = data.train_dataloader()
    seen: dict[int, int] = {}
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            starts = (batch["position_ids"] == 0) & (batch["row"] >= 0)
            for row in batch["row"][starts].tolist():
                seen[row] = seen.get(row, 0) + 1
    assert [seen[row] for row in range(ROWS)] == [4] * ROWS
    assert sum(seen[row] for row in range(ROWS, 2 * ROWS)) >= ROWS - 1


def test_report_and_inspection_tell_of_packs(folder):
    data = module(folder, batching="packed", max_length=120, val_split=3)
    text = inspect(data, toy_tokenizer())
    report = data.report["train"]
    assert report.packs == len(data.train_dataloader().dataset)
    assert 0.5 < report.pack_efficiency == report.tokens / (report.packs * 120) <= 1
    assert f"packed: {report.packs} packs, {report.pack_efficiency:.1%} full" in text
    assert report.counts()["packs"] == report.packs
    assert "packs" not in data.report["val"].counts()
    assert "attention_mask" in next(iter(data.val_dataloader()))


def test_the_default_groups_what_is_shuffled(folder):
    assert module(folder).train_batches.kind == "grouped"
    assert module(folder, shuffle=False).train_batches.kind == "padded"
    assert module(folder, shuffle=False, batching="packed", max_length=120).packed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batching": "packed"}, "packed without data.max_length"),
        ({"batching": "grouped", "shuffle": False}, "grouped with data.shuffle: false"),
        ({"batching": "packed", "max_length": 30}, "longer than max_length=30.*data.truncation"),
    ],
)
def test_settings_that_cannot_work_are_refused(folder, options, message):
    with pytest.raises(UserError, match=message):
        module(folder, **options).setup("fit")


def test_batches_draw_nothing_from_the_global_random_stream(folder):
    state = torch.random.get_rng_state()
    for batching in ("grouped", "packed"):
        data = module(folder, batching=batching, max_length=120)
        data.setup("fit")
        assert list(data.train_dataloader())
    assert torch.equal(torch.random.get_rng_state(), state)
