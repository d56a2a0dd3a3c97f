"""The data module: splits, counts, errors, contracts of its batches."""

import json
import pickle

import numpy as np
import pytest
import torch

from lightning_sft.data import SFTDataModule, Source
from lightning_sft.data.inspect import inspect
from lightning_sft.errors import UserError
from tests.data.helpers import byte_tokenizer, template, trained_text, write_jsonl
from tests.toys import toy_tokenizer


def pairs(*numbers: int, length: int = 1) -> list[dict[str, str]]:
    return [{"prompt": f"question {i}" * length, "completion": f"answer {i}"} for i in numbers]


@pytest.fixture
def path(tmp_path):
    return str(write_jsonl(tmp_path / "rows.jsonl", pairs(*range(20))))


def built(stage: str = "fit", **options: object) -> SFTDataModule:
    data = SFTDataModule(**{"tokenizer": toy_tokenizer(), "shuffle": False, "batch_size": 4, **options})
    data.setup(stage)
    return data


def prompts(data: SFTDataModule, loader: object) -> list[str]:
    tokenizer = data.tokenizer
    return [tokenizer.decode(ids).split("question ")[1].split("<")[0] for batch in loader for ids in batch["input_ids"]]


def test_batches_of_pad_equal_to_end_of_turn_train_and_attend_the_end(path):
    data = built(train=path)
    assert data.tokenizer.pad_token_id == data.tokenizer.eos_token_id
    batch = next(iter(data.train_dataloader()))
    assert {name: value.dtype for name, value in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels", "row", "source"), torch.int64
    )
    for i in range(4):
        assert trained_text(data.tokenizer, batch, i) == f"answer {i}<|im_end|>"
    end = (batch["labels"] == data.tokenizer.eos_token_id).nonzero()
    assert len(end) == 4
    assert all(batch["attention_mask"][row, column] == 1 for row, column in end)
    trained = batch["labels"] != -100
    assert torch.equal(batch["labels"][trained], batch["input_ids"][trained])


@pytest.mark.parametrize(("share", "count"), [(0.25, 5), (3, 3), (3.0, 3)])
def test_split_is_disjoint_deterministic_and_the_same_in_every_stage(path, share, count):
    data = built(train=path, val_split=share)
    train, val = prompts(data, data.train_dataloader()), prompts(data, data.val_dataloader())
    assert len(val) == count
    assert sorted(map(int, train + val)) == list(range(20))
    again = built("validate", train=path, val_split=share)
    assert prompts(again, again.val_dataloader()) == val
    other = built(train=path, val_split=share, seed=1)
    assert prompts(other, other.val_dataloader()) != val


@pytest.mark.parametrize("share", [0, 20, 1.0, -1, 0.001])
def test_split_that_leaves_nothing_is_refused(path, share):
    with pytest.raises(UserError, match=r"val_split=.* of 20 rows"):
        built(train=path, val_split=share)


def test_settings_that_contradict_each_other(path):
    for options, message in (
        ({"val": path, "val_split": 3}, "Leave one of them out"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_length": 0}, "max_length is 0"),
        ({"train": [path, path]}, "Give each its own `name`"),
    ):
        with pytest.raises(UserError, match=message):
            SFTDataModule(**{"train": path, **options})
    with pytest.raises(UserError, match="weight is 0"):
        Source(path, weight=0)


def test_loaders_of_sets_that_are_not_given(path):
    data = built(val=path)
    with pytest.raises(UserError, match="nothing to train on"):
        data.train_dataloader()
    with pytest.raises(UserError, match="nothing for test"):
        data.test_dataloader()


def test_no_tokenizer_anywhere(path):
    with pytest.raises(UserError, match="no tokenizer"):
        built(train=path, tokenizer=None)


def test_conversations_without_chat_template(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError, match="no chat template"):
        built(train=str(path), tokenizer=byte_tokenizer(), on_bad_row="skip")


def test_sources_keep_their_names_and_weights(tmp_path):
    first, second = (write_jsonl(tmp_path / f"{n}.jsonl", pairs(*r)) for n, r in (("a", range(4)), ("b", range(4, 10))))
    data = built(train=[Source(str(first), weight=2), Source(str(second), name="other", weight=0.5)], val=str(first))
    assert data.source_names == ("a", "other", "a")
    sources = torch.cat([batch["source"] for batch in data.train_dataloader()])
    assert sources.tolist().count(0) == 8
    assert sources.tolist().count(1) == 3
    assert data.report["train"].source_rows == {"a": 4, "other": 6}
    assert data.report["val"].leaked == 4
    assert next(iter(data.val_dataloader()))["source"].tolist() == [2] * 4


@pytest.mark.parametrize(
    ("truncation", "rows", "truncated", "dropped"),
    [("drop", 2, 0, 2), ("left", 4, 2, 0), ("right", 2, 0, 2), ("keep_completion", 4, 2, 0)],
)
def test_truncation_is_counted(tmp_path, truncation, rows, truncated, dropped):
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs(0, 1), *pairs(2, 3, length=9)])
    data = built(train=str(path), max_length=60, truncation=truncation)
    report = data.report["train"]
    assert (report.rows, report.truncated, report.dropped) == (rows, truncated, dropped)
    assert report.lengths.max() <= 60
    assert report.counts()["truncated"] == truncated
    assert (report.full_lengths > 60).sum() == truncated


def test_a_row_of_exactly_max_length_is_whole(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", pairs(0))
    length = built(train=str(path)).report["train"].tokens
    for truncation in ("error", "drop", "left", "right"):
        report = built(train=str(path), max_length=length, truncation=truncation).report["train"]
        assert (report.tokens, report.truncated, report.dropped) == (length, 0, 0)


def test_it_can_be_sent_to_another_process(path):
    data = pickle.loads(pickle.dumps(built(train=path)))
    assert prompts(data, data.train_dataloader()) == [str(i) for i in range(20)]
    assert data.val_dataloader() == []


def test_rows_that_are_too_long_are_an_error_that_says_how_long(path):
    with pytest.raises(UserError, match=r"20 of 20 rows of train are longer than max_length=20; .*truncation"):
        built(train=path, max_length=20)
    with pytest.raises(UserError, match="No rows are left in train: of 20 rows, 0 were bad and 20 dropped"):
        built(train=path, max_length=20, truncation="drop")


def test_report_counts_tokens(path):
    data = built(train=path)
    report = data.report["train"]
    batches = list(data.train_dataloader())
    assert report.tokens == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert report.trained.sum() == sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert report.trained_share == pytest.approx(report.trained.sum() / report.tokens)
    assert report.counts()["rows"] == 20


def test_bad_rows_are_skipped_counted_and_listed(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [*pairs(0, 1), {"prompt": "q"}, {"prompt": "q", "completion": ""}])
    out = tmp_path / "run" / "bad.jsonl"
    data = built(train=str(path), on_bad_row="skip", rejected_file=str(out))
    assert [row.reason for row in data.report["train"].rejected] == [
        "missing column completion; the row has prompt",
        "completion is empty",
    ]
    listed = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["where"] for row in listed] == [f"{path}:3", f"{path}:4"]
    assert listed[0]["set"] == "train"
    with pytest.raises(UserError, match=r"a\.jsonl:3: missing column completion.*on_bad_row: skip"):
        built(train=str(path))


def test_exact_match_scorer(path):
    data = built("test", test=Source(path, score="exact_match"))
    row = data.generation_rows("test", 1)[0]
    assert row.reference == "answer 0"
    assert data.score(row, " answer 0 ") == 1.0
    assert data.score(row, "answer") == 0.0
    silent = built("test", test=path)
    assert silent.score(silent.generation_rows("test", 1)[0], "answer 0") is None


def test_some_generation_rows_are_spread_over_the_set(path):
    data = built("test", test=path)
    assert [row.index for row in data.generation_rows("test", 4)] == [0, 5, 10, 15]
    assert [row.index for row in data.generation_rows("test", 99)] == list(range(20))
    assert data.generation_rows("test", 0) == data.generation_rows("val") == []


def test_generation_rows_of_plain_text_are_none(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "words"}])
    assert built("test", test=str(path)).generation_rows("test") == []


def test_index_of_generation_rows_is_the_row_of_the_batch(path):
    data = built("predict", predict=path)
    batch = next(iter(data.predict_dataloader()))
    rows = {row.index: row for row in data.generation_rows("predict")}
    for i, index in enumerate(batch["row"].tolist()):
        ids = batch["input_ids"][i]
        assert ids[: len(rows[index].prompt_ids)].tolist() == rows[index].prompt_ids
        assert data.tokenizer.decode(rows[index].prompt_ids) == rows[index].prompt_text


def test_tokenizer_by_name(tmp_path, path):
    toy_tokenizer().save_pretrained(tmp_path / "tokenizer")
    data = built(train=path, tokenizer=str(tmp_path / "tokenizer"))
    assert len(data.tokenizer) == len(toy_tokenizer())


def test_inspect_shows_rows_lengths_leaks_and_what_is_trained(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [*pairs(0, 1, 2), *pairs(7, length=9), {"prompt": "q"}])
    val = write_jsonl(tmp_path / "val.jsonl", pairs(1, 5))
    options = {"max_length": 60, "truncation": "left", "on_bad_row": "skip", "rejected_file": str(tmp_path / "bad")}
    data = SFTDataModule(train=str(train), val=str(val), **options)
    text = inspect(data, byte_tokenizer(template("chatml")), rows=4)
    assert "train: 4 rows (train 4)" in text
    assert "skipped as bad 1" in text
    assert "leaks: 1 row also stands in train; not dropped\n" in text
    assert "few: 2 rows: intervals and verdicts on silent failure need at least 8\n" in text
    assert "<|im_start|>assistant\n\u27e6answer 0<|im_end|>\u27e7" in text
    assert "train row 3, source train: 60 tokens, truncated from " in text
    assert "missing column completion" in text
    green = inspect(SFTDataModule(train=str(train), **options), byte_tokenizer(template("chatml")), rows=1, color=True)
    assert "\x1b[1;32manswer 0<|im_end|>\x1b[0m" in green
    assert "\u27e6" not in green
    shares = np.array([float(part.split("%")[0]) for part in text.split("trained (")[1:]])
    assert len(shares) == 4
