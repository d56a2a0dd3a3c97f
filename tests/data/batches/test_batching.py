"""Order and layout: the same rows in other company or otherwise laid, and a position that survives."""

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

    grouped = order.copy()
    group_by_length(grouped, lengths, 8, random)
    assert padding(order) > 0.2
    assert padding(grouped) < 0.04
    assert sorted(grouped) == sorted(order)
    # the lengths of neighbouring batches do not follow each other
    means = lengths[grouped[: 933 * 8]].reshape(-1, 8).mean(1)
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 0.15
    again = random.permutation(order)
    group_by_length(again, lengths, 8, random)
    assert set(map(frozenset, grouped[:7464].reshape(-1, 8))) != set(map(frozenset, again[:7464].reshape(-1, 8)))


@pytest.mark.parametrize(("order", "workers"), [("grouped", 2), ("packed", 0), ("packed", 2)])
@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_resume_continues_with_the_next_unseen_row(folder, order, workers, stop):
    data = {"order": order, "max_length": 120, "num_workers": workers, "batch_size": 2}
    whole = fit(folder, "whole", epochs=2, data=data)
    steps = len(whole) // 2
    assert steps > 3
    assert fit(folder, "first", epochs=2, steps=stop, data=data) == whole[:stop]
    rest = fit(folder, "rest", epochs=2, resume=folder / "first" / f"step={stop}.ckpt", data=data)
    assert rest == whole[stop:]
    for epoch in (whole[:steps], whole[steps:]):
        assert sorted(rows_seen(epoch)) == list(range(ROWS))
    assert rows_seen(whole[:steps]) != rows_seen(whole[steps:])


@pytest.mark.parametrize("order", ["shuffled", "grouped", "packed", "sequential"])
def test_resume_of_a_run_that_counts_its_steps_beforehand(folder, order, monkeypatch):
    """Schedules ask for the number of steps; Lightning then makes the loader before it restores a checkpoint."""
    configure_optimizers = Recorder.configure_optimizers

    def counting(self: Recorder) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches > 4
        return configure_optimizers(self)

    monkeypatch.setattr(Recorder, "configure_optimizers", counting)
    data = {"order": order, "max_length": 120, "batch_size": 2}
    whole = fit(folder, "whole", epochs=2, data=data)
    fit(folder, "first", epochs=2, data=data, limit_train_batches=4)
    rest = fit(folder, "rest", epochs=2, resume=folder / "first" / "step=3.ckpt", data=data)
    assert rest == whole[3:]


@pytest.mark.ranks
@pytest.mark.parametrize("order", ["grouped", "packed"])
def test_two_ranks_share_an_epoch_and_resume(folder, order):
    two = {"devices": 2, "strategy": "ddp_fork"}
    data = {"order": order, "max_length": 120, "num_workers": 1, "batch_size": 1 if order == "packed" else 3}
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
    [({"order": "shuffled"}, r"order 'packed to 120' \(now 'shuffled'\)"), ({"max_length": 140}, "packed to 140")],
)
def test_resume_with_another_order_is_refused(folder, change, name):
    data = {"order": "packed", "max_length": 120, "batch_size": 2}
    fit(folder, "first", steps=2, data=data)
    with pytest.raises(UserError, match=name):
        fit(folder, "rest", resume=folder / "first" / "step=2.ckpt", data={**data, **change})


def test_overfit_batches_repeats_packs(folder):
    lines = fit(folder, "overfit", epochs=2, overfit_batches=2, data={"order": "packed", "max_length": 120})
    assert rows_seen(lines[:2]) == rows_seen(lines[2:])
    assert len(rows_seen(lines[:2])) > 6


def module(folder, **options) -> SFTDataModule:
    return SFTDataModule(**{"train": str(folder / "rows.jsonl"), "tokenizer": toy_tokenizer(), **options})


def test_weights_hold_for_packs(folder):
    source = {"path": str(folder / "rows.jsonl")}
    data = module(
        folder,
        train=[Source(**source, name="a", weight=2.0), Source(**source, name="b", weight=0.5)],
        order="packed",
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
    data = module(folder, order="packed", max_length=120, val_split=3)
    text = inspect(data, toy_tokenizer())
    report = data.report["train"]
    assert report.packs == len(data.train_dataloader().dataset)
    assert 0.5 < report.pack_efficiency == report.tokens / (report.packs * 120) <= 1
    assert f"packed: {report.packs} packs, {report.pack_efficiency:.1%} full" in text
    assert report.counts()["packs"] == report.packs
    assert "packs" not in data.report["val"].counts()
    assert "attention_mask" in next(iter(data.val_dataloader()))


@pytest.mark.parametrize(
    ("options", "order", "layout"),
    [
        ({}, "shuffled", "auto"),
        ({"shuffle": True}, "shuffled", "auto"),
        ({"shuffle": False}, "sequential", "auto"),
        ({"order": "sequential", "layout": "flat"}, "sequential", "flat"),
        ({"packing": True, "max_length": 120}, "packed", "auto"),
        ({"packing": False, "padding_free": True}, "shuffled", "flat"),
        ({"padding_free": False, "order": "grouped"}, "grouped", "padded"),
        # as configurations of earlier runs say it
        ({"batching": "auto", "shuffle": True}, "grouped", "padded"),
        ({"batching": "auto", "shuffle": False}, "sequential", "padded"),
        ({"batching": "auto"}, "grouped", "padded"),
        ({"batching": "padded", "shuffle": True}, "shuffled", "padded"),
        ({"batching": "padded", "shuffle": False}, "sequential", "padded"),
        ({"batching": "grouped", "shuffle": True}, "grouped", "padded"),
        ({"batching": "packed", "shuffle": True, "max_length": 120}, "packed", "auto"),
    ],
)
def test_settings_under_all_their_names(folder, options, order, layout):
    data = module(folder, **options)
    asked = data.train_batches.settings
    assert (asked.order, asked.layout) == (order, layout)
    assert data.packed == (order == "packed")
    data.setup("fit")
    assert data.train_dataloader().sampler.shuffle == (order != "sequential")


def test_packs_in_one_order(folder):
    data = module(folder, batching="packed", shuffle=False, max_length=120, batch_size=1)
    data.setup("fit")
    loader = data.train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        orders.append([batch["row"].tolist() for batch in loader])
    assert orders[0] == orders[1]


@pytest.mark.parametrize(
    ("stored", "options"),
    [
        ({"batching": "grouped", "shuffle": 1}, {"batching": "auto", "shuffle": True}),
        ({"batching": "grouped", "shuffle": 1}, {"order": "grouped"}),
        ({"batching": "padded", "shuffle": 1}, {"layout": "flat"}),
        ({"batching": "padded", "shuffle": 0}, {"order": "sequential"}),
        ({"batching": "padded", "shuffle": 0}, {"batching": "auto", "shuffle": False}),
        ({"batching": "packed to 120", "shuffle": 1}, {"order": "packed"}),
        ({"batching": "packed to 120", "shuffle": 0}, {"batching": "packed", "shuffle": False}),
    ],
)
def test_positions_of_earlier_checkpoints_are_understood(folder, stored, options):
    data = module(folder, max_length=120, batch_size=2, **options)
    data.setup("fit")
    loader = data.train_dataloader()
    state = {key: value for key, value in loader.state_dict().items() if key != "order"}
    loader.load_state_dict({**state, **stored, "batches": 2})
    rest = [batch["row"] for batch in loader]
    whole = [batch["row"] for batch in data.train_dataloader()]
    assert 0 < len(rest) == len(whole) - 2
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[2:], strict=True))
    other = {**state, **stored, "batching": "grouped" if stored["batching"] == "padded" else "padded"}
    with pytest.raises(UserError, match=r"order .* \(now"):
        loader.load_state_dict(other)


def test_flat_batches_hold_the_rows_of_padded_ones(folder):
    loaders = []
    for layout in ("padded", "flat"):
        data = module(folder, layout=layout, batch_size=3)
        data.setup("fit")
        loaders.append(data.train_dataloader())
    for padded, flat in zip(*loaders, strict=True):
        real = padded["attention_mask"] == 1
        assert flat["input_ids"].shape == (1, int(real.sum()))
        assert torch.equal(padded["input_ids"][real], flat["input_ids"][0])
        assert flat["row"].unique_consecutive().tolist() == padded["row"].tolist()
        assert flat["cu_seq_lens"].diff().tolist() == real.sum(1).tolist()
        assert flat["max_length"] == padded["input_ids"].shape[1]
        trained = padded["labels"][:, 1:]
        assert torch.equal(flat["labels"][0, flat["supervised"] + 1], trained[trained != -100])
        assert (flat["labels"] != -100).sum() == len(flat["supervised"])


class Taking(Recorder):
    """Says that it takes flat batches."""

    takes_flat_batches = True


@pytest.mark.parametrize(
    ("model", "layout", "shape"),
    [(Taking, None, 1), (Taking, "padded", 2), (Recorder, None, 2), (Recorder, "padded", 2)],
)
def test_layout_follows_what_the_module_declares(folder, model, layout, shape, caplog, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        model, "on_train_batch_start", lambda self, batch, index: shapes.append(batch["input_ids"].shape)
    )
    data = {"layout": layout, "batch_size": 2}
    with caplog.at_level("INFO"):
        fit(folder, "run", epochs=1, data=data, recorder=model)
    assert all(s[0] == shape for s in shapes[:3])
    if layout is None:
        told = "Rows of a batch lie end to end" if model is Taking else "Recorder does not declare takes_flat_batches"
        assert told in caplog.text


class Learning(Taking):
    """Knows whether it takes flat batches once its model is built, and counts steps before."""

    takes_flat_batches = False

    def setup(self, stage):
        assert self.trainer.estimated_stepping_batches > 0

    def configure_model(self):
        self.takes_flat_batches = True


def test_layout_waits_for_the_model(folder, caplog, monkeypatch):
    shapes = []
    monkeypatch.setattr(
        Learning, "on_train_batch_start", lambda self, batch, index: shapes.append(batch["input_ids"].shape)
    )
    with caplog.at_level("INFO"):
        fit(folder, "run", epochs=1, data={"batch_size": 2}, recorder=Learning)
    assert {s[0] for s in shapes} == {1}
    assert "Batches are padded" not in caplog.text


def test_flat_is_refused_where_the_module_does_not_take_it(folder):
    with pytest.raises(UserError, match=r"layout is flat.*Recorder does not declare.*order: grouped"):
        fit(folder, "run", data={"layout": "flat"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "packed"}, "packed without data.max_length"),
        ({"batching": "packed"}, "packed without data.max_length"),
        ({"order": "packed", "layout": "padded", "max_length": 120}, "order: packed with layout: flat.*grouped with"),
        ({"order": "grouped", "shuffle": False}, "grouped with data.shuffle: false"),
        ({"batching": "grouped", "shuffle": False}, "grouped with data.shuffle: false"),
        ({"order": "sequential", "shuffle": True}, "sequential with data.shuffle: true"),
        ({"order": "shuffled", "batching": "auto"}, "batching: auto is given beside data.order: shuffled"),
        ({"order": "shuffled", "packing": True}, "packing is True with data.order: shuffled"),
        ({"layout": "padded", "padding_free": True}, "padding_free is True with data.layout: padded"),
        ({"order": "packed", "max_length": 30}, "longer than max_length=30.*data.truncation"),
    ],
)
def test_settings_that_cannot_work_are_refused(folder, options, message):
    with pytest.raises(UserError, match=message):
        module(folder, **options).setup("fit")


def test_batches_draw_nothing_from_the_global_random_stream(folder):
    state = torch.random.get_rng_state()
    for order in ("grouped", "packed"):
        data = module(folder, order=order, max_length=120)
        data.setup("fit")
        assert list(data.train_dataloader())
    assert torch.equal(torch.random.get_rng_state(), state)
