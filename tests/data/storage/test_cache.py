"""Encoded rows from the cache: equal to fresh ones, used whenever nothing changed, and never when something did."""

import datetime
import json
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_sft.data import DataSource, Example, ReasoningGymTask, Source
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.inspect import inspect
from lightning_sft.data.reading import sources
from lightning_sft.data.reading.formats import to_example
from lightning_sft.data.types import Record
from lightning_sft.errors import UserError
from lightning_sft.files import encoded_rows_root
from tests.data import kept as shared
from tests.data.helpers import byte_tokenizer, template, write_jsonl
from tests.data.kept import built, chat, entries, facts, outcome
from tests.running import run, run_folder, toy_arguments, write_rows
from tests.toys import CHATML, toy_tokenizer

root, untouchable = shared.root, shared.untouchable
TOKENIZER = byte_tokenizer(CHATML)


@pytest.fixture
def rows(tmp_path):
    return str(write_jsonl(tmp_path / "rows.jsonl", [chat(i) for i in range(12)]))


def both(root, stage="fit", **options):
    """Facts of a set made without a cache, made into it, and taken from it; the key must not be asked twice."""
    return [facts(built(stage, cache_dir=folder, **options)) for folder in (False, str(root), str(root))]


texts = st.text(st.sampled_from("ab é\n\u2028\x1f<|im_end|>"), max_size=12)
plain_rows = st.fixed_dictionaries({"prompt": texts, "completion": texts})
chat_rows = st.builds(
    lambda q, a, t: {
        "messages": [
            {"role": "user", "content": q},
            {"role": "assistant", "content": a} | ({"train": True} if t else {}),
        ]
    },
    texts,
    texts,
    st.booleans(),
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_comes_from_the_cache_equals_what_is_made(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("property")
    kind = data.draw(st.sampled_from([plain_rows, chat_rows]))
    paths = []
    for name in ("train", "more", "held"):
        rows = data.draw(st.lists(kind | st.just({"prompt": 3}), min_size=1, max_size=8))
        good = {"prompt": "a", "completion": name} if kind is plain_rows else chat(0)
        paths.append(str(write_jsonl(folder / f"{name}.jsonl", [good, *rows, good])))
    options = {
        "train": paths[:2],
        "test": Source(paths[2], score="exact_match"),
        "predict": paths[2],
        "on_bad_row": "skip",
        "rejected_file": str(folder / "rejected.jsonl"),
        "tokenizer": TOKENIZER,
        "max_length": data.draw(st.sampled_from([None, 80])),
        "truncation": data.draw(st.sampled_from(["drop", "left", "keep_completion"])),
        "train_on": data.draw(st.sampled_from(["assistant", "all"])),
        "system": data.draw(st.sampled_from([None, "be brief"])),
    }
    options |= data.draw(st.sampled_from([{"val_split": 0.4}, {"val": Source(paths[2], name="val")}]))
    for stage in ("fit", "validate", "test", "predict"):
        found = [outcome(stage, cache_dir=place, **options) for place in (False, str(folder / "kept"))]
        found.append(outcome(stage, cache_dir=str(folder / "kept"), **options))
        assert found == [found[0]] * 3


def test_nothing_is_read_or_tokenised_again(rows, root, request):
    options = {"train": rows, "val_split": 3, "test": Source(rows, score="exact_match"), "predict": rows}
    before = [facts(built(stage, cache_dir=str(root), **options)) for stage in ("fit", "validate", "test", "predict")]
    request.getfixturevalue("untouchable")
    after = [facts(built(stage, cache_dir=str(root), **options)) for stage in ("fit", "validate", "test", "predict")]
    assert after == before
    assert [name.split("-")[0] for name in entries(root)] == ["predict", "test", "train", "val"]


def test_stages_one_after_the_other(rows, root, tmp_path):
    other = str(write_jsonl(tmp_path / "other.jsonl", [chat(i) for i in range(8, 16)]))

    def all_stages(cache_dir):
        data = built("fit", train=rows, val_split=3, test=other, cache_dir=cache_dir)
        data.setup("test")
        return facts(data), data.report["test"].leaked

    assert all_stages(False) == all_stages(str(root)) == all_stages(str(root))
    assert all_stages(False)[1] == 4


def test_rows_are_mapped_and_pickled_by_name(rows, root):
    built(train=rows, cache_dir=str(root))
    dataset = built(train=rows, cache_dir=str(root)).dataset("train")
    (folder,) = root.glob("train-*")
    assert isinstance(dataset.ids.base, np.memmap)
    assert Path(dataset.ids.base.filename) == folder / "ids.npy"
    text = pickle.dumps(dataset)
    assert dataset.ids.tobytes() not in text
    again = pickle.loads(text)
    assert isinstance(again.ids.base, np.memmap)
    for i in range(len(dataset)):
        assert again[i].ids.tolist() == dataset[i].ids.tolist()
        assert again[i].trained.tolist() == dataset[i].trained.tolist()
    assert again[-1].ids.tolist() == []


def test_nobody_writes_into_the_cache_by_accident(rows, root):
    built(train=rows, cache_dir=str(root))
    dataset = built(train=rows, cache_dir=str(root)).dataset("train")
    first = dataset.ids[0].item()
    dataset.ids[0] = 7
    assert built(train=rows, cache_dir=str(root)).dataset("train").ids[0] == first


def test_workers_read_what_is_mapped(rows, root):
    for workers in (0, 2):
        data = built(train=rows, cache_dir=str(root), num_workers=workers, batching="padded")
        batches = [batch["input_ids"].tolist() for batch in data.train_dataloader()]
        fresh = built(train=rows, cache_dir=False, batching="padded")
        assert batches == [batch["input_ids"].tolist() for batch in fresh.train_dataloader()]


CHANGES = {
    "train_on": {"train_on": "all"},
    "apply_chat_template": {"apply_chat_template": "never"},
    "template_kwargs": {"template_kwargs": {"x": 1}},
    "max_length": {"max_length": 100},
    "truncation": {"truncation": "left"},
    "on_bad_row": {"on_bad_row": "skip"},
    "system": {"system": "be brief"},
    "val_split": {"val_split": 3},
    "template": {"tokenizer": byte_tokenizer("Hi " + CHATML)},
    "vocabulary": {"tokenizer": byte_tokenizer(CHATML, merges=[("s", "a")])},
    "end token": {"tokenizer": byte_tokenizer(CHATML, eos="<|eot|>")},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_new_rows(root, tmp_path, change):
    path = str(write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"say {i}", "completion": "ok"} for i in range(6)]))
    options = {"train": path, "tokenizer": byte_tokenizer(CHATML)}
    built(cache_dir=str(root), **options)
    assert len(entries(root)) == 1
    changed = {**options, **CHANGES[change]}
    assert facts(built(cache_dir=str(root), **changed)) == facts(built(cache_dir=False, **changed))
    assert len([name for name in entries(root) if name.startswith("train-")]) == 2


@pytest.mark.parametrize(
    "change",
    [{"columns": {"prompt": "other"}}, {"max_rows": 3}, {"format": "text"}, {"system": "s"}, {"max_row_bytes": 99}],
    ids=str,
)
def test_a_change_of_the_source_makes_new_rows(root, tmp_path, change):
    fields = {"prompt": "a", "other": "b", "completion": "c", "text": "d"}
    path = str(write_jsonl(tmp_path / "a.jsonl", [fields] * 4))
    built(train=Source(path), cache_dir=str(root))
    changed = Source(path, **change)
    assert facts(built(train=changed, cache_dir=str(root))) == facts(built(train=changed, cache_dir=False))
    assert len(entries(root)) == 2


def test_one_changed_byte_makes_new_rows(rows, root):
    before = facts(built(train=rows, cache_dir=str(root)))
    path = Path(rows)
    stamp = path.stat()
    text = path.read_text()
    path.write_text(text.replace("it is 3", "it is 8"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    changed = facts(built(train=rows, cache_dir=str(root)))
    assert changed == facts(built(train=rows, cache_dir=False)) != before
    path.write_text(text)
    assert facts(built(train=rows, cache_dir=str(root))) == before
    assert len(entries(root)) == 2


def test_a_further_file_in_a_folder_makes_new_rows(root, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [chat(1)])
    assert built(train=str(folder), cache_dir=str(root)).report["train"].rows == 1
    write_jsonl(folder / "b.jsonl", [chat(2)])
    assert built(train=str(folder), cache_dir=str(root)).report["train"].rows == 2


def test_what_does_not_matter_makes_no_new_rows(rows, root, request):
    built(train=rows, cache_dir=str(root))
    request.getfixturevalue("untouchable")
    for options in ({"batch_size": 2}, {"shuffle": True, "seed": 3}, {"num_proc": 2}, {"pad_to_multiple_of": 8}):
        built(**{"train": rows, "cache_dir": str(root), **options})
    built(train=Source(rows, weight=2, name="renamed"), cache_dir=str(root))
    assert len(entries(root)) == 1


def test_changed_code_makes_new_rows(rows, root, monkeypatch):
    built(train=rows, cache_dir=str(root))
    monkeypatch.setattr("lightning_sft.data.library.encoding_digest", lambda: "another version")
    built(train=rows, cache_dir=str(root))
    assert len(entries(root)) == 2


def test_a_template_that_tells_the_date_is_asked_again_tomorrow(rows, root, monkeypatch):
    dated = "{{ strftime_now('%Y') if strftime_now is defined }}" + CHATML
    built(train=rows, tokenizer=byte_tokenizer(dated), cache_dir=str(root))
    built(train=rows, tokenizer=byte_tokenizer(dated), cache_dir=str(root))
    assert len(entries(root)) == 1

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date(2999, 1, 1)

    monkeypatch.setattr("lightning_sft.data.encoding.encode.datetime.date", Tomorrow)
    built(train=rows, tokenizer=byte_tokenizer(dated), cache_dir=str(root))
    assert len(entries(root)) == 2


def test_a_template_that_is_told_the_day_gives_the_same_rows_tomorrow():
    dated = '{{ strftime_now("%d %B %Y") if strftime_now is defined }}' + CHATML
    tokenizer = byte_tokenizer(dated)

    def encoded(told):
        encoder = Encoder(tokenizer, template_kwargs=told)
        return tokenizer.decode(encoder(to_example(chat(0), "messages")).ids), encoder.identity()

    text, identity = encoded({"strftime_now": "2024-07-26"})
    assert text.startswith("26 July 2024")
    assert encoded({"strftime_now": datetime.date(2024, 7, 26)}) == (text, identity), "YAML reads it as a date"
    assert str(datetime.date.today()) not in identity
    assert str(datetime.date.today()) in encoded(None)[1]
    with pytest.raises(UserError, match=r"strftime_now: 'yesterday', which must be the day"):
        encoded({"strftime_now": "yesterday"})


def test_a_tokenizer_that_was_used_before_is_the_same(rows, root):
    tokenizer = byte_tokenizer(CHATML)
    built(train=rows, tokenizer=tokenizer, cache_dir=str(root))
    tokenizer(["a", "abc"], padding=True, truncation=True, max_length=2)
    built(train=rows, tokenizer=tokenizer, cache_dir=str(root))
    assert len(entries(root)) == 1


def test_data_that_change_while_they_are_read_are_not_kept(rows, root, monkeypatch):
    original = Source.examples

    def append_meanwhile(self, answers=True):
        yield from original(self, answers)
        with Path(rows).open("a") as file:
            file.write(json.dumps(chat(99)) + "\n")

    monkeypatch.setattr(Source, "examples", append_meanwhile)
    assert built(train=rows, cache_dir=str(root)).report["train"].rows == 12
    assert entries(root) == []


class Made(DataSource):
    """A source of the user's own."""

    name = "made"

    def __init__(self, numbers, known=False):
        self.numbers, self.known, self.read = numbers, known, 0

    def examples(self, answers=True):
        self.read += 1
        for i in self.numbers:
            messages = tuple(chat(i)["messages"])
            yield Example(messages, (None, None), where=f"made[{i}]", item=None if self.known else object())

    def identity(self):
        return ["made", list(self.numbers)] if self.known else None


def test_own_sources_are_read_and_not_tokenised_again(root, monkeypatch):
    options = {"train": Made(range(6)), "val": Made(range(4, 9))}
    fresh = built(cache_dir=False, **options)
    kept = built(cache_dir=str(root), **options)
    monkeypatch.setattr(Encoder, "__call__", None)
    again = built(cache_dir=str(root), **options)
    assert again.report["val"].leaked == kept.report["val"].leaked == fresh.report["val"].leaked == 2
    assert options["train"].read == 3
    assert again.sets["val"].examples[1].item is not None
    for what in ("train", "val"):
        assert again.dataset(what).ids.tolist() == fresh.dataset(what).ids.tolist()
    with pytest.raises(TypeError):  # other rows are tokenised
        built(cache_dir=str(root), train=Made(range(7)))


def test_own_sources_that_say_what_they_are_are_not_even_read(root):
    options = {"train": Made(range(6), known=True), "val": Made(range(4, 9), known=True)}
    fresh, kept, again = both(root, **options)
    assert fresh == kept == again
    assert options["train"].read == 2


def test_hub_data_are_known_by_the_fingerprint_that_datasets_gives_them(root, tmp_path, monkeypatch):
    """No row is read at a further start; another revision, or other settings, are other rows."""
    load_from_files, read = datasets.load_dataset, []
    revision = write_jsonl(tmp_path / "hub.jsonl", [chat(i) for i in range(6)])

    def load(path, name, split, streaming):
        """Load as from the hub: the fingerprint is that of the files' own builder, and rows are counted."""
        assert (path, streaming) == ("someone/sums", False)
        return load_from_files("json", data_files=str(revision), split=split, cache_dir=tmp_path / "hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("lightning_sft.hub.why_not_reached", lambda: None)
    monkeypatch.setattr(sources, "Record", lambda *row: read.append(row[0]) or Record(*row))

    def start(**options):
        read.clear()
        return facts(built(cache_dir=str(root), train=Source("someone/sums", **options)))

    first = start()
    assert len(read) == 6
    assert start() == first
    assert not read
    assert start(max_rows=4) != first
    assert read
    revision = write_jsonl(tmp_path / "next.jsonl", [chat(i) for i in range(7)])
    assert start() != first
    assert len(read) == 7


def test_tasks_drop_their_leaks_as_without_a_cache(root):
    pytest.importorskip("reasoning_gym")

    def task(size, seed):
        return ReasoningGymTask("chain_sum", size=size, seed=seed, config={"max_digits": 1, "max_terms": 2})

    options = {"train": task(40, 0), "val": task(40, 1)}
    found = [built(cache_dir=folder, **options) for folder in (False, str(root), str(root))]
    reports = [data.report["val"] for data in found]
    assert reports[0].leaked_dropped > 0
    assert len({(r.rows, r.leaked, r.leaked_dropped, r.tokens) for r in reports}) == 1
    rows = [[repr(row) for row in data.generation_rows("val", 4)] for data in found]
    assert rows[0] == rows[1] == rows[2]
    assert all(data.score(row, row.reference) == 1.0 for data in found for row in data.generation_rows("val", 4))


def test_values_that_json_does_not_know_are_not_kept(root, tmp_path):
    tools = [{"name": "f", "added": datetime.date(2020, 1, 1)}]
    table = pa.table({"messages": [chat(0)["messages"]], "tools": [tools]})
    pq.write_table(table, tmp_path / "rows.parquet")
    tokenizer = byte_tokenizer("{{ tools[0].function.name if tools else '' }}" + CHATML)
    fresh, kept, again = both(root, "test", test=str(tmp_path / "rows.parquet"), tokenizer=tokenizer)
    assert fresh == kept == again
    assert entries(root) == []


def test_tokenizers_of_others_are_not_kept(rows, root):
    class Wrapped:
        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __call__(self, *args, **kwargs):
            return self.tokenizer(*args, **kwargs)

        def __getattr__(self, name):
            return getattr(self.__dict__["tokenizer"], name)

    data = built(train=rows, tokenizer=Wrapped(toy_tokenizer()), cache_dir=str(root))
    assert facts(data) == facts(built(train=rows, cache_dir=False))
    assert entries(root) == []


def test_the_folder_is_the_variables_the_settings_or_none(rows, tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_SFT_DATA_CACHE", str(tmp_path / "variable"))
    built(train=rows)
    assert len(entries(tmp_path / "variable")) == 1
    built(train=rows, cache_dir=str(tmp_path / "setting"))
    assert len(entries(tmp_path / "setting")) == 1
    for off in (False, None):
        assert built(train=rows, cache_dir=off).sets.cache.root is None
    assert len(entries(tmp_path / "variable")) == 1
    monkeypatch.delenv("LIGHTNING_SFT_DATA_CACHE")
    monkeypatch.setenv("LIGHTNING_SFT_CACHE", str(tmp_path / "root"))
    assert encoded_rows_root() == tmp_path / "root" / "data"
    monkeypatch.delenv("LIGHTNING_SFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert encoded_rows_root() == tmp_path / "xdg" / "lightning_sft" / "data"


def test_bad_rows_are_listed_from_the_cache_too(root, tmp_path):
    rows = [chat(0), {"messages": "x" * 500 + "\x00" * 300}, chat(1)]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    lists = []
    for name in ("cold", "kept"):
        file = tmp_path / f"{name}.jsonl"
        built(train=path, cache_dir=str(root), on_bad_row="skip", rejected_file=str(file))
        lists.append(file.read_text())
    assert lists[0] == lists[1] != ""


def test_a_bad_row_keeps_nothing(root, tmp_path):
    path = str(write_jsonl(tmp_path / "rows.jsonl", [chat(0), {"messages": []}]))
    for _ in range(2):
        with pytest.raises(UserError, match=r"rows\.jsonl:2"):
            built(train=path, cache_dir=str(root))
    assert entries(root) == []
    assert shared.leftovers(root) == []


def test_inspect_shows_the_same(rows, root):
    shown = []
    for folder in (False, str(root), str(root)):
        data = shared.SFTDataModule(train=rows, val_split=3, cache_dir=folder)
        shown.append(inspect(data, byte_tokenizer(template("chatml"))))
    assert shown[0] == shown[1] == shown[2]


def test_a_resumed_run_tokenises_nothing(toy_folder, tmp_path, monkeypatch):
    settings = {"data__cache_dir": tmp_path / "kept"}
    arguments = toy_arguments(toy_folder, write_rows(tmp_path / "rows.jsonl"), **settings)
    run("fit", arguments)
    monkeypatch.setattr(Encoder, "__call__", None)
    run("fit", [*arguments, "--ckpt_path=last", "--trainer.max_steps=5"])
    assert (run_folder() / "config_resumed_at_step_3.yaml").exists()
