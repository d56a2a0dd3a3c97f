"""Weights of the loss: from rows, messages and characters, by rules, through every layout, the cache and processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sft.data import LossWeights, SFTDataModule, Source
from lightning_sft.data.codes import Code
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.inspect import inspect
from lightning_sft.data.reading.formats import to_example
from lightning_sft.data.types import BadRowError, Encoded
from lightning_sft.errors import UserError
from tests.data.helpers import byte_tokenizer, piece, template, write_jsonl

TOKENIZER = byte_tokenizer(template("chatml"))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **keys}


def encode(row: dict[str, Any], train_on: Any = "assistant", tokenizer: Any = TOKENIZER, **rules: float) -> Encoded:
    form = next(form for form in ("messages", "conversations", "prompt", "text") if form in row)
    names = {"conversations": "sharegpt", "prompt": "prompt_completion"}
    encoder = Encoder(tokenizer, train_on, loss_weights=LossWeights(**rules))
    return encoder(to_example(row, names.get(form, form)))


def weighted(encoded: Encoded, tokenizer: Any = TOKENIZER) -> list[tuple[str, float]]:
    """The trained text in pieces of one weight."""
    weights = np.ones(len(encoded.ids)) if encoded.weights is None else encoded.weights
    found: list[tuple[str, float]] = []
    inside = False
    for token, trained, weight in zip(encoded.ids.tolist(), encoded.trained.tolist(), weights.tolist(), strict=True):
        if not trained:
            inside = False
            continue
        text = piece(tokenizer, token)
        if inside and found[-1][1] == round(weight, 6):
            found[-1] = (found[-1][0] + text, found[-1][1])
        else:
            found.append((text, round(weight, 6)))
        inside = True
    return found


END = "<|im_end|>"


@pytest.mark.parametrize("key", ["weight", "loss_weight", "loss_scale"])
def test_a_message_weighs_what_its_key_says(key: str) -> None:
    messages = [user("a"), assistant("one", **{key: 0.5}), user("b"), assistant("two"), user("c")]
    row = {"messages": [*messages, assistant("three", **{key: -2})]}
    assert weighted(encode(row)) == [("one" + END, 0.5), ("two" + END, 1.0), ("three" + END, -2.0)]
    chosen = {"messages": [*messages, assistant("three", **{key: 0})]}
    assert weighted(encode(chosen)) == [("one" + END, 0.5), ("two" + END, 1.0)]


@pytest.mark.parametrize("name", ["markers", "markers_with_end"])
def test_markers_of_a_template_weigh_the_same(name: str) -> None:
    tokenizer = byte_tokenizer(template(name))
    row = {"messages": [user("a"), assistant("one", weight=0.5), user("b"), assistant("two")]}
    assert [weight for _, weight in weighted(encode(row, tokenizer=tokenizer), tokenizer)] == [0.5, 1.0]


def test_a_row_weighs_all_of_it_and_multiplies() -> None:
    row = {"messages": [user("a"), assistant("one", weight=0.5), user("b"), assistant("two")], "weight": 4}
    assert weighted(encode(row)) == [("one" + END, 2.0), ("two" + END, 4.0)]
    plain = {"prompt": "a", "completion": "b", "loss_weight": 0.25}
    assert weighted(encode(plain)) == [("b" + END, 0.25)]
    assert encode({"prompt": "a", "completion": "b"}).weights is None
    assert encode({"prompt": "a", "completion": "b", "weight": 1}).weights is None


def test_rows_of_ms_swift_and_llama_factory_load(tmp_path: Path) -> None:
    swift = {"messages": [user("a"), assistant("think", loss_scale=0.1), user("b"), assistant("call", loss_scale=2.0)]}
    factory = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "hi", "loss_weight": 0.3}]}
    for row, weights in ((swift, [0.1, 2.0]), (factory, [0.3])):
        path = write_jsonl(tmp_path / "rows.jsonl", [row])
        data = SFTDataModule(train=str(path), tokenizer=TOKENIZER, cache_dir=False)
        data.setup("fit")
        row_found = data.dataset("train")[0]
        found = weighted(Encoded(row_found.ids, row_found.trained, weights=row_found.weights))
        assert [weight for _, weight in found] == weights


def test_a_switch_says_whether_and_a_weight_how_much() -> None:
    both = {"loss": True, "loss_scale": 0.5}
    assert weighted(encode({"messages": [user("a"), assistant("one", **both)]})) == [("one" + END, 0.5)]
    assert weighted(encode({"prompt": "a", "completion": "one", "train": True, "weight": 2})) == [("one" + END, 2.0)]
    for flags in ({"loss": False, "loss_scale": 0.5}, {"loss": True, "loss_scale": 0}, {"weight": 1, "loss_scale": 2}):
        with pytest.raises(BadRowError, match="disagree"):
            encode({"messages": [user("a"), assistant("one", **flags)]})


def test_messages_of_typed_parts_load_with_their_weights() -> None:
    """As LLaMA-Factory's converters write them: parts of three kinds, a weight for every message, tools as text."""

    def part(value: str, sort: str = "text") -> dict[str, str]:
        return {"type": sort, "value": value}

    call = part('{"name": "add", "arguments": {"a": 1}}', "tool_call")
    row = {
        "messages": [
            {"role": "user", "content": [part("1+1?")], "loss_weight": 0.0},
            {"role": "assistant", "content": [part("so", "reasoning"), part("hm"), call], "loss_weight": 0.3},
            {"role": "tool", "content": [part("2")], "loss_weight": 0.0},
            {"role": "assistant", "content": [part("It is "), part("2")], "loss_weight": 1.5},
        ],
        "tools": '[{"name": "add", "parameters": {}}]',
    }
    example = to_example(row, "messages")
    assert example.flags == (False, 0.3, False, 1.5)
    first, last = example.messages[1], example.messages[3]
    assert (first["content"], first["reasoning_content"], last["content"]) == ("hm", "so", "It is 2")
    assert first["tool_calls"] == [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    assert example.tools == ({"type": "function", "function": {"name": "add", "parameters": {}}},)
    plain = {"messages": [row["messages"][0], {**row["messages"][3]}]}
    assert weighted(encode(plain)) == [("It is 2" + END, 1.5)]
    with pytest.raises(BadRowError, match="content of type 'reasoning'"):
        to_example({"messages": [{"role": "user", "content": [part("so", "reasoning")]}, assistant("a")]}, "messages")


def test_characters_of_a_message_weigh_apart_and_tokenise_as_ever() -> None:
    answer = assistant(" so 17 is it", loss_spans=[[4, 6, 3.0], [7, 9, 0.5]])
    row = {"messages": [user("a"), answer]}
    tokenizer = byte_tokenizer(template("chatml"), merges=[("1", "7")])
    encoded = encode(row, tokenizer=tokenizer)
    plain = encode({"messages": [user("a"), assistant(" so 17 is it")]}, tokenizer=tokenizer)
    assert np.array_equal(encoded.ids, plain.ids)
    text = "".join(piece for piece, _ in weighted(encoded, tokenizer))
    assert text.endswith("17 is it" + END)
    pieces = [found for found in weighted(encoded, tokenizer) if found[1] != 1.0]
    assert pieces == [("17", 3.0), ("is", 0.5)]


@pytest.mark.parametrize(
    "spans", [[[0, 9, 1.0]], [[2, 1, 1.0]], [[0, 1]], [[0, 1, float("nan")]], [[0, 1, True]], [{"start": 0}], "all"]
)
def test_characters_that_are_not_there_are_refused(spans: Any) -> None:
    with pytest.raises(BadRowError, match="loss_spans") as error:
        encode({"messages": [user("a"), assistant("short", loss_spans=spans)]})
    assert error.value.code in (Code.WEIGHT, Code.COLUMNS, Code.TEXT)


def test_prompts_and_answers_weigh_apart_where_all_is_trained() -> None:
    row = {"messages": [user("a"), assistant("one", weight=2), user("b"), assistant("two")]}
    found = weighted(encode(row, "all", prompt=0.1, answer=3))
    assert [weight for _, weight in found] == [0.1, 6.0, 0.1, 3.0, 0.1][: len(found)]
    assert [text for text, weight in found if weight >= 3] == ["one" + END, "two" + END]
    tokenizer = byte_tokenizer(None)
    plain = encode({"prompt": "ask", "completion": "say"}, "all", tokenizer, prompt=0.1)
    assert weighted(plain, tokenizer)[-2:] == [("ask", 0.1), ("say" + END, 1.0)]
    with pytest.raises(UserError, match=r"loss_weights.prompt is 0.1 with data.train_on: assistant"):
        encode(row, prompt=0.1)


def test_what_weighs_nothing_is_not_trained() -> None:
    row = {"messages": [user("a"), assistant("one two", loss_spans=[[0, 3, 0]])]}
    assert weighted(encode(row)) == [(" two" + END, 1.0)]
    with pytest.raises(BadRowError, match="nothing would be trained"):
        encode(row, answer=0)


@pytest.mark.parametrize("key", ["weight", "loss_weight", "loss_scale"])
def test_weights_of_a_row_that_are_none_are_refused(key: str) -> None:
    for value in ("much", float("inf"), float("nan")):
        with pytest.raises(BadRowError, match=f"{key} must be a finite number") as error:
            encode({"prompt": "a", "completion": "b", key: value})
        assert error.value.code is Code.WEIGHT
    for value in (1e39, -2e9):
        with pytest.raises(BadRowError, match=r"multiply to .*e\+.*Allowed: at most 1e\+09"):
            encode({"prompt": "a", "completion": "b", key: value})
    other = "loss_weight" if key == "weight" else "weight"
    with pytest.raises(BadRowError, match="disagree"):
        encode({"prompt": "a", "completion": "b", key: 2, other: 3})


def rows(tmp_path: Path) -> list[str | Source]:
    first = [{"prompt": "ab" * (i + 1), "completion": "cd" * (3 - i), "weight": 0.5 + i} for i in range(3)]
    second = [{"prompt": "x", "completion": "yz"}, {"prompt": "x", "completion": "w" * 9}]
    return [
        Source(str(write_jsonl(tmp_path / "a.jsonl", first)), name="a"),
        Source(str(write_jsonl(tmp_path / "b.jsonl", second)), name="b"),
    ]


def weights_by_row(data: SFTDataModule) -> dict[int, list[float]]:
    """Row -> the weights of its labels, as a training loader gives them."""
    data.setup("fit")
    found: dict[int, list[float]] = {}
    for batch in data.train_dataloader():
        row = batch["row"] if batch["row"].dim() == 2 else batch["row"][:, None].expand_as(batch["labels"])
        keep = batch["labels"] != -100
        for index, weight in zip(row[keep].tolist(), _weights(batch)[keep].tolist(), strict=True):
            found.setdefault(index, []).append(round(weight, 6))
    return found


def _weights(batch: dict[str, Tensor]) -> Tensor:
    return batch.get("loss_weight", torch.ones(batch["labels"].shape))


@pytest.mark.parametrize("order", ["shuffled", "grouped", "packed", "sequential"])
def test_every_order_and_layout_hands_the_weights_on(tmp_path: Path, order: Any) -> None:
    expected = {0: [0.5] * 7, 1: [1.5] * 5, 2: [2.5] * 3, 3: [3.0] * 3, 4: [3.0] * 10}
    rules = LossWeights(sources={"b": 3.0})
    data = SFTDataModule(
        rows(tmp_path),
        tokenizer=TOKENIZER,
        batch_size=2,
        order=order,
        max_length=80,
        loss_weights=rules,
        cache_dir=False,
    )
    assert weights_by_row(data) == expected


def test_weights_come_back_from_the_cache_and_from_other_processes(tmp_path: Path) -> None:
    sources, folder = rows(tmp_path), str(tmp_path / "cache")
    plain = SFTDataModule(sources, tokenizer=TOKENIZER, cache_dir=False)
    expected = weights_by_row(plain)
    assert expected[0] == [0.5] * 7
    for _ in range(2):
        data = SFTDataModule(sources, tokenizer=TOKENIZER, cache_dir=folder, num_proc=2)
        assert weights_by_row(data) == expected
    assert weights_by_row(SFTDataModule(sources, tokenizer=TOKENIZER, cache_dir=folder, num_workers=2)) == expected
    # another rule is another entry
    heavy = SFTDataModule(sources, tokenizer=TOKENIZER, cache_dir=folder, loss_weights=LossWeights(answer=2))
    assert weights_by_row(heavy)[0] == [1.0] * 7


def test_rows_without_weights_make_batches_without_them(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    data = SFTDataModule(str(path), tokenizer=TOKENIZER, cache_dir=False)
    data.setup("fit")
    assert all("loss_weight" not in batch for batch in data.train_dataloader())


def test_unknown_sources_and_weights_that_are_none_are_refused(tmp_path: Path) -> None:
    data = SFTDataModule(
        rows(tmp_path), tokenizer=TOKENIZER, cache_dir=False, loss_weights=LossWeights(sources={"c": 2})
    )
    data.setup("fit")
    with pytest.raises(UserError, match=r"sources names \['c'\]. The sources of this run are \['a', 'b'\]"):
        data.train_dataloader()
    with pytest.raises(UserError, match=r"loss_weights got {'sources.a': nan}"):
        LossWeights(sources={"a": float("nan")})


def test_negative_weights_are_warned_of(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b", "weight": -0.5}])
    data = SFTDataModule(str(path), tokenizer=TOKENIZER, cache_dir=False)
    with pytest.warns(UserWarning, match="1 of 1 rows of train have tokens of negative weight"):
        data.setup("fit")


def test_inspect_shows_the_weights(tmp_path: Path) -> None:
    data = SFTDataModule(rows(tmp_path), cache_dir=False, loss_weights=LossWeights(sources={"b": 3.0}))
    text = inspect(data, TOKENIZER, rows=5)
    assert "cdcdcd<|im_end|>\u27e7\u00d70.5" in text
    assert "yz<|im_end|>\u27e7\u00d73" in text
