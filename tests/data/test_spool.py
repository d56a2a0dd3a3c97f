"""Rows larger than memory: the same rows, tokens, orders and refusals as of rows that fit, on one rank and on two."""

import errno
import json
import os
import random
import tempfile
import threading

import datasets
import numpy as np
import pytest

from lightning_sft.data import DataSource, Example, SFTDataModule, Source, indices, spool
from lightning_sft.data.known import PROMPT, ROW, fingerprint, standing_in
from lightning_sft.data.library import SetLibrary
from lightning_sft.data.spool import Chosen, GrowingArray, Spool, spooling_in
from lightning_sft.data.storage.cache import Cache
from lightning_sft.errors import UserError
from tests.data.helpers import write_jsonl
from tests.data.kept import chat, entries, facts
from tests.toys import toy_tokenizer


@pytest.fixture
def tiny(monkeypatch):
    """Nothing stays in memory."""
    monkeypatch.setattr(spool, "ROOM", 0)
    monkeypatch.setattr(spool, "BLOCK", 50)


def filled(items):
    kept = Spool()
    for item in items:
        kept.append(item)
    return kept


def test_a_spool_is_a_list(tiny):
    items = [{"a": "é\ud800" * (i % 5), "n": i} for i in range(40)]
    kept = filled(items)
    assert (len(kept), list(kept), kept[7], kept[-1], kept[3:9:2]) == (40, items, items[7], items[-1], items[3:9:2])
    assert kept[39] == items[39]  # still on its way to the file
    with pytest.raises(IndexError):
        kept[40]
    chosen = Chosen(kept, np.array([5, 2, 39]))
    assert (list(chosen), chosen[0], len(chosen[1:])) == ([items[5], items[2], items[39]], items[5], 2)


def test_what_cannot_be_pickled_stays_in_memory(tiny):
    items = [1, lambda: 2, "x" * 200, threading.Lock()]
    assert list(filled(items)) == items


def test_a_spool_goes_to_another_process_by_value(tiny):
    import pickle

    assert list(pickle.loads(pickle.dumps(filled(range(30))))) == list(range(30))


@pytest.mark.parametrize("block", [1, 64, 1 << 20])
def test_an_array_grows(monkeypatch, block):
    monkeypatch.setattr(spool, "BLOCK", block)
    for dtype in (np.int64, np.bool_, np.float32):
        whole, grown = np.arange(99).astype(dtype), GrowingArray(dtype)
        for start in range(0, 99, 7):
            grown.extend(whole[start : start + 7])
        assert len(grown) == 99
        found = grown.finish()
        assert found.dtype == dtype
        assert found.tolist() == whole.tolist()
        assert isinstance(found.base, np.memmap) == (block < 1 << 20)
    assert GrowingArray(np.int64).finish().tolist() == []


def test_an_array_is_read_while_it_grows(tiny):
    grown = GrowingArray(np.int64)
    for number in range(40):
        grown.extend(number)
        assert grown.read(max(number - 9, 0), number + 1) == list(range(max(number - 9, 0), number + 1))
    assert grown.read(0, 40) == list(range(40))


@pytest.mark.parametrize("piece", [1, 3, 1 << 15])
def test_rows_are_chosen_piece_by_piece(tiny, monkeypatch, piece):
    monkeypatch.setattr(indices, "PIECE", piece)
    draw = np.random.default_rng(0)
    chosen, sources = draw.random(50) < 0.4, np.sort(draw.integers(0, 6, 50))
    keys = draw.integers(0, 255, (50, 32), dtype=np.uint8)
    at = indices.where(chosen)
    assert at.tolist() == np.flatnonzero(chosen).tolist()
    assert np.array_equal(indices.taken(keys, at), keys[chosen])
    assert indices.taken(keys, at[:0]).shape == (0, 32)
    values, starts, counts = np.unique(sources, return_index=True, return_counts=True)
    expected = [(int(v), int(s), int(s + c)) for v, s, c in zip(values, starts, counts, strict=True)]
    assert list(indices.stretches(sources)) == expected
    assert list(indices.stretches(sources[:0])) == []
    shuffled = indices.shuffled_indices(50, np.random.default_rng(3))
    assert shuffled.tolist() == np.random.default_rng(3).permutation(50).tolist()


def test_files_are_in_the_folder_of_the_cache_and_leave_nothing(tiny, tmp_path, monkeypatch):
    made = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **how: made.append(how.get("dir")) or real(**how))
    with spooling_in(tmp_path / "new"):
        kept = filled(range(99))
    assert set(made) == {tmp_path / "new"}
    assert list(kept) == list(range(99))
    assert list((tmp_path / "new").iterdir()) == []
    with spooling_in(tmp_path / "new" / "\0"):
        filled(range(99))
    assert made[-1] is None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_full_disk_is_named(tiny, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb"))
    for fill in (lambda: filled(range(99)), lambda: GrowingArray(np.int64).extend(np.arange(99))):
        with pytest.raises(UserError, match=rf"temporary file: {os.strerror(errno.ENOSPC)}.*data.cache_dir.*TMPDIR"):
            fill()


def test_leaks_are_found_by_digest():
    draw = np.random.default_rng(0)
    rows, others = (draw.integers(0, 3, (n, 32), dtype=np.uint8) for n in (400, 3))
    rows[:, 3:16], rows[:, 19:] = 0, 0
    others = rows[[7, 9]]
    others[0, :8] = 255  # the first half differs
    for part in (ROW, PROMPT):
        known = {bytes(row[part]) for row in others}
        assert standing_in(rows, [others[:1], others[1:]], part).tolist() == [bytes(row[part]) in known for row in rows]
    assert not standing_in(rows, [], ROW).any()
    assert fingerprint(rows, np.arange(400)) != fingerprint(rows, np.arange(399))


def all_kinds(tmp_path):
    """Options of sets with bad rows, long rows, leaks, weights, a split, two sources and a scorer."""
    draw = random.Random(0)
    rows = [chat(i) | ({"weight": 0.5} if i % 3 == 1 else {}) for i in range(40)]
    rows += [{"messages": [{"role": "user", "content": "x" * draw.randint(1, 90)}, chat(9)["messages"][1]]}] * 9
    rows[5] = {"messages": 3}
    more = [{"prompt": f"p{i}", "completion": "c", "note": 1} for i in range(20)] + [chat(3), {"prompt": 1}]
    held = [chat(i) for i in range(30, 50)]
    paths = [str(write_jsonl(tmp_path / f"{n}.jsonl", r)) for n, r in (("a", rows), ("b", more), ("c", held))]
    return {
        "train": [Source(paths[0], weight=1.5), paths[1]],
        "test": Source(paths[2], score="exact_match"),
        "predict": paths[2],
        "val_split": 6,
        "on_bad_row": "skip",
        "rejected_file": str(tmp_path / "rejected.jsonl"),
        "max_length": 60,
        "truncation": "keep_completion",
        "shuffle": True,
        "seed": 3,
    }


@pytest.mark.parametrize("order", ["shuffled", "packed"])
@pytest.mark.parametrize("processes", [1, 2])
def test_large_sets_are_the_same_sets(tmp_path, monkeypatch, order, processes):
    options = {k: v for k, v in all_kinds(tmp_path).items() if k != "shuffle"} | {"order": order}

    def found(cache_dir):
        data = SFTDataModule(tokenizer=toy_tokenizer(), cache_dir=cache_dir, num_proc=processes, **options)
        for stage in ("fit", "test", "predict"):
            data.setup(stage)
        batches = [{k: str(v) for k, v in batch.items()} for batch in data.train_dataloader()]
        return facts(data), batches, data.sets.fingerprint, len(data.sets.examples("train"))

    before = found(False)
    monkeypatch.setattr(spool, "ROOM", 0)
    monkeypatch.setattr(spool, "BLOCK", 200)
    monkeypatch.setattr("lightning_sft.data.known.PIECE", 4)
    monkeypatch.setattr("lightning_sft.data.indices.PIECE", 4)
    monkeypatch.setattr("lightning_sft.data.batches.packing.PIECE", 4)
    monkeypatch.setattr("lightning_sft.data.batches.sampler.PIECE", 4)
    assert found(False) == before
    assert found(str(tmp_path / "kept")) == before  # made
    assert found(str(tmp_path / "kept")) == before  # mapped


class Streamed(DataSource):
    """Rows that nothing but reading tells; counts how often they were read."""

    name = "streamed"

    def __init__(self):
        self.read = 0

    def examples(self, answers=True):
        self.read += 1
        for i in range(30):
            yield Example((*chat(i)["messages"],), where=str(i))


@pytest.mark.parametrize("split", [None, 4])
def test_one_rank_reads_a_stream_for_all(tmp_path, split):
    """Two ranks are two libraries here, in threads: the lock between them is that of processes."""
    root, sources, found = tmp_path / "kept", [Streamed(), Streamed()], {}
    alone = SFTDataModule(Streamed(), val_split=split, tokenizer=toy_tokenizer(), cache_dir=False)
    alone.setup("fit")

    def rank(number):
        data = SFTDataModule(sources[number], val_split=split, tokenizer=toy_tokenizer(), cache_dir=str(root))
        data.sets.launch = "one"
        data.setup("fit")
        found[number] = data

    threads = [threading.Thread(target=rank, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(source.read for source in sources) == [0, 1]
    assert facts(found[0]) == facts(found[1]) == facts(alone)
    found[0].sets.forget_launch()
    assert [name.split("-")[0] for name in entries(root)] == ["train", *(["val"] if split else [])]


def test_a_cache_that_cannot_be_used_lets_each_rank_read(tmp_path):
    (tmp_path / "file").write_text("")
    source = Streamed()
    library = SetLibrary({"train": [source], "val": [], "test": [], "predict": []}, cache=Cache(tmp_path / "file"))
    library.launch = "one"
    data = SFTDataModule(Streamed(), tokenizer=toy_tokenizer(), cache_dir=False)
    data.setup("fit")
    with pytest.warns(UserWarning, match="cannot be used"):
        built = library.build("train", data._encoder)
    assert (len(built.dataset), source.read) == (30, 1)


def test_a_hub_stream_needs_no_limit(tmp_path, monkeypatch):
    rows = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(25)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, streaming, **__: iter(rows) if streaming else rows[:2])
    monkeypatch.setattr("lightning_sft.hub.why_not_reached", lambda: None)
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    streamed, filed = (
        SFTDataModule(source, tokenizer=toy_tokenizer(), cache_dir=str(tmp_path / "kept"))
        for source in (Source("some/rows", streaming=True), path)
    )
    for data in (streamed, filed):
        data.setup("fit")
    assert streamed.dataset("train").ids.tolist() == filed.dataset("train").ids.tolist()
    assert streamed.sets.fingerprint == filed.sets.fingerprint
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[-1]) == rows[-1]
