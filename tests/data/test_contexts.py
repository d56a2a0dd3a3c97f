"""Weights of tokens behind given contexts: exactly those tokens, in every layout, from the cache, and said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_sft.data import LossWeights, SFTDataModule
from lightning_sft.data.inspect import inspect
from lightning_sft.errors import UserError
from tests.data.helpers import byte_tokenizer, write_jsonl
from tests.data.test_weights import TOKENIZER, assistant, rows, user, weights_by_row

FOUND = "ignore:.*data.loss_weights.contexts. were not found:UserWarning"


def context(row: dict[str, Any], text: str, tokenizer: Any = TOKENIZER) -> dict[str, Any]:
    """What a monitor writes about the token behind ``text`` in a row: all ids before it, and its own."""
    data = SFTDataModule(str(row.pop("path")), tokenizer=tokenizer, cache_dir=False)
    data.setup("fit")
    ids = data.dataset("train")[0].ids
    before = tokenizer.decode(ids).index(text) + len(text)
    at = next(i for i in range(len(ids) + 1) if len(tokenizer.decode(ids[:i])) == before)
    return {"context_ids": ids[:at].tolist(), "correct_id": int(ids[at]), "competitor_id": 5, "set": "train"}


def module(path: Path, files: dict[str, float], tokenizer: Any = TOKENIZER, **settings: Any) -> SFTDataModule:
    how = {"cache_dir": False, **settings}
    data = SFTDataModule(str(path), tokenizer=tokenizer, loss_weights=LossWeights(contexts=files), **how)
    data.setup("fit")
    return data


def heavy(data: SFTDataModule) -> list[tuple[int, str, float]]:
    """Row, text of the token and weight of each token whose weight is not 1."""
    found = []
    for index in range(len(data.dataset("train"))):
        row = data.dataset("train")[index]
        weights = np.ones(len(row.ids)) if row.weights is None else row.weights
        found += [(index, data.tokenizer.decode([row.ids[i]]), weights[i]) for i in np.flatnonzero(weights != 1)]
    return found


@pytest.fixture
def conversation(tmp_path: Path) -> Path:
    """Two turns that say the same, and a second row that differs in the first question alone."""
    turns = [user("a"), assistant("one"), user("b"), assistant("one")]
    return write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns}, {"messages": [user("c"), *turns[1:]]}])


def test_only_the_token_behind_the_whole_context_weighs(conversation: Path, tmp_path: Path) -> None:
    first = context({"path": conversation}, "a<|im_end|>\n<|im_start|>assistant\no")
    file = str(write_jsonl(tmp_path / "silent.jsonl", [first]))
    data = module(conversation, {file: 4.0})
    assert heavy(data) == [(0, "n", 4.0)]
    assert data.report["train"].contexts == {file: [1, 1, 0]}
    # the same words in the second turn, and in the other row, have other tokens before them
    second = context({"path": conversation}, "b<|im_end|>\n<|im_start|>assistant\no")
    both = str(write_jsonl(tmp_path / "both.jsonl", [first, second, first]))
    assert heavy(module(conversation, {both: 4.0, file: 0.5})) == [(0, "n", 2.0), (0, "n", 4.0)]


@pytest.mark.parametrize("order", ["shuffled", "grouped", "packed", "sequential"])
@pytest.mark.parametrize("layout", ["auto", "flat"])
def test_every_order_and_layout_hands_them_on(tmp_path: Path, order: Any, layout: Any) -> None:
    sources = rows(tmp_path)
    plain = SFTDataModule(sources, tokenizer=TOKENIZER, cache_dir=False)
    plain.setup("fit")
    ids = plain.dataset("train")[4].ids.tolist()
    file = str(write_jsonl(tmp_path / "silent.jsonl", [{"context_ids": ids[:-3], "correct_id": ids[-3]}]))
    rules = LossWeights(sources={"b": 3.0}, contexts={file: 2.0})
    how = {"order": order, "layout": layout, "batch_size": 2, "max_length": 80}
    data = SFTDataModule(sources, tokenizer=TOKENIZER, loss_weights=rules, cache_dir=False, **how)
    expected = {0: [0.5] * 7, 1: [1.5] * 5, 2: [2.5] * 3, 3: [3.0] * 3, 4: [3.0] * 8 + [6.0] + [3.0]}
    assert weights_by_row(data) == expected


@pytest.mark.filterwarnings(FOUND)
def test_the_cache_knows_what_stands_in_the_file(conversation: Path, tmp_path: Path, recwarn: Any) -> None:
    found = context({"path": conversation}, "a<|im_end|>\n<|im_start|>assistant\no")
    file = write_jsonl(tmp_path / "silent.jsonl", [found, {**found, "correct_id": 1}])
    how = {"cache_dir": str(tmp_path / "cache"), "num_proc": 2}
    for _ in range(2):  # encoded, and from the cache
        data = module(conversation, {str(file): 4.0}, **how)
        assert heavy(data) == [(0, "n", 4.0)]
        assert data.report["train"].contexts == {str(file): [1, 2, 0]}
        assert data.report["train"].counts()[f"contexts/{file}/found"] == 1
    assert heavy(module(conversation, {str(file): 3.0}, **how)) == [(0, "n", 3.0)]
    write_jsonl(file, [{**found, "correct_id": 1}])
    assert heavy(module(conversation, {str(file): 4.0}, **how)) == []
    assert heavy(module(conversation, {}, **how)) == []


def test_what_is_not_found_is_said_each_time(conversation: Path, tmp_path: Path) -> None:
    found = context({"path": conversation}, "a<|im_end|>\n<|im_start|>assistant\no")
    prompt = {"context_ids": found["context_ids"][:3], "correct_id": found["context_ids"][3]}  # stands there untrained
    beyond = {"context_ids": found["context_ids"] * 50, "correct_id": 5}
    file = str(write_jsonl(tmp_path / "silent.jsonl", [found, prompt, beyond]))
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"2 of the 3 contexts of .*silent.jsonl .* were not found: no row"):
            data = module(conversation, {file: 4.0}, cache_dir=str(tmp_path / "cache"))
        assert heavy(data) == [(0, "n", 4.0)]


def test_validation_rows_are_left_alone(conversation: Path, tmp_path: Path) -> None:
    found = context({"path": conversation}, "a<|im_end|>\n<|im_start|>assistant\no")
    file = str(write_jsonl(tmp_path / "silent.jsonl", [found]))
    data = module(conversation, {file: 0.0}, val=str(conversation))
    assert heavy(data) == [(0, "n", 0.0)]
    assert not data.dataset("train")[0].trained[len(found["context_ids"])]
    assert data.dataset("val").weights is None
    assert data.dataset("val")[0].trained[len(found["context_ids"])]


def test_lines_of_validation_rows_are_passed_over(conversation: Path, tmp_path: Path, caplog: Any) -> None:
    found = context({"path": conversation}, "a<|im_end|>\n<|im_start|>assistant\no")
    elsewhere = [{**found, "context_ids": [7, 8], "set": name} for name in ("val", "val/0")]
    file = str(write_jsonl(tmp_path / "silent.jsonl", [found, *elsewhere]))
    with caplog.at_level("INFO"):
        data = module(conversation, {file: 4.0})
    assert heavy(data) == [(0, "n", 4.0)]
    assert data.report["train"].contexts == {file: [1, 1, 2]}
    assert "1 of 1 contexts" in caplog.text
    assert "2 lines of validation rows were passed over" in caplog.text
    write_jsonl(tmp_path / "silent.jsonl", elsewhere)
    with pytest.warns(UserWarning, match="weighs nothing: all of its 2 lines are of validation rows"):
        module(conversation, {file: 4.0})


@pytest.mark.parametrize("how", ["left", "right"])
def test_contexts_are_those_of_cut_rows(tmp_path: Path, how: Any) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "ask me", "completion": "a long answer"}])
    cut = {"max_length": 60, "truncation": how}
    plain = SFTDataModule(str(path), tokenizer=TOKENIZER, cache_dir=False, **cut)
    plain.setup("fit")
    row = plain.dataset("train")[0]
    at = int(np.flatnonzero(row.trained)[2])
    written = {"context_ids": row.ids[:at].tolist(), "correct_id": int(row.ids[at])}
    file = str(write_jsonl(tmp_path / "silent.jsonl", [written]))
    data = module(path, {file: 4.0}, **cut)
    assert np.flatnonzero(data.dataset("train").weights != 1).tolist() == [at]


def test_a_row_of_which_nothing_is_left_is_a_bad_one(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(None, merges=[("o", "k")])
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "ok"}, {"text": "no"}])
    ids = tokenizer("ok").input_ids
    rows = [{"context_ids": ids, "correct_id": tokenizer.eos_token_id}]
    file = str(write_jsonl(tmp_path / "silent.jsonl", rows))
    with pytest.raises(UserError, match=r"nothing would be trained: data.loss_weights.contexts gives weight 0"):
        module(path, {file: 0.0}, tokenizer)
    data = module(path, {file: 0.0}, tokenizer, on_bad_row="skip", rejected_file=str(tmp_path / "bad.jsonl"))
    assert data.report["train"].codes == {"nothing_trained": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "has context_ids=None"),
        ('{"context_ids": [], "correct_id": 1}', r"has context_ids=\[\]"),
        ('{"context_ids": [1, true], "correct_id": 1}', "has context_ids"),
        ('{"context_ids": [1, -1], "correct_id": 1}', "has context_ids"),
        ('{"context_ids": "1 2", "correct_id": 1}', "has context_ids"),
        ('{"context_ids": [1, 5000000000], "correct_id": 1}', "has context_ids"),
        ('{"context_ids": [1]}', ".* and correct_id=None"),
        ('{"context_ids": [1], "correct_id": "the"}', ".* and correct_id='the'"),
    ],
)
def test_a_file_of_something_else_is_refused(conversation: Path, tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "silent.jsonl"
    file.write_text('{"context_ids": [1], "correct_id": 2}\n' + line + "\n")
    with pytest.raises(UserError, match=f"loss_weights.contexts: .*silent.jsonl, line 2 {message}.*Needed on every"):
        module(conversation, {str(file): 2.0})


@pytest.mark.parametrize("cache", [True, False])
def test_a_file_that_is_not_there_is_refused(conversation: Path, tmp_path: Path, cache: bool) -> None:
    with pytest.raises(UserError, match=r"contexts names .*nowhere.jsonl, which cannot be read: .*JSON lines"):
        module(conversation, {str(tmp_path / "nowhere.jsonl"): 2.0}, cache_dir=str(tmp_path / "c") if cache else False)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"contexts names .*bytes, which cannot be read"):
        module(conversation, {str(tmp_path / "bytes"): 2.0}, cache_dir=False)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "much", True, None])
def test_weights_that_are_none_are_refused(weight: Any) -> None:
    with pytest.raises(UserError, match=r"loss_weights got {'contexts.silent.jsonl': .*}. Allowed: finite numbers"):
        LossWeights(contexts={"silent.jsonl": weight})


def test_negative_rules_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"got {'sources.b': -1.0, 'contexts.f': -2}: the model is pushed"):
        LossWeights(sources={"b": -1.0}, contexts={"f": -2})


@pytest.mark.filterwarnings(FOUND)
def test_inspect_shows_them(conversation: Path, tmp_path: Path) -> None:
    found = context({"path": conversation}, "a<|im_end|>\n<|im_start|>assistant\no")
    file = str(write_jsonl(tmp_path / "silent.jsonl", [found, {**found, "correct_id": 1}]))
    data = SFTDataModule(str(conversation), loss_weights=LossWeights(contexts={file: 4.0}), cache_dir=False)
    text = inspect(data, TOKENIZER, rows=1)
    assert f"  contexts of {file}: 1 of 2 found" in text
    assert "\u27e6o\u27e7\u27e6n\u27e7\u00d74\u27e6e<|im_end|>\u27e7" in text


def test_an_empty_file_weighs_nothing(conversation: Path, tmp_path: Path) -> None:
    (tmp_path / "silent.jsonl").write_text("\n")
    data = module(conversation, {str(tmp_path / "silent.jsonl"): 4.0})
    assert data.dataset("train").weights is None


def test_the_command_line_takes_files_by_name(conversation: Path, tmp_path: Path) -> None:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SFTDataModule, "data")
    file = "runs/a.b/silent.jsonl"
    given = json.dumps({file: 4})
    config = parser.parse_args(["--data.train", str(conversation), f"--data.loss_weights.contexts={given}"])
    data = parser.instantiate_classes(config).data
    assert data.loss_weights.contexts == {file: 4.0}
