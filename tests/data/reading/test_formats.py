"""The same conversation in every format and kind of file gives the same ids and masks."""

import bz2
import csv
import gzip
import json
import lzma

import datasets
import numpy as np
import pyarrow as pa
import pytest

from lightning_sft import hub
from lightning_sft.data import BadRow, Example, SFTDataModule, Source
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.reading.formats import detect, to_example
from lightning_sft.data.types import BadRowError
from lightning_sft.errors import UserError
from tests.data.helpers import byte_tokenizer, marked, template, write_jsonl

PAIRS = [("What is 1+1?", "It is 2.\n#### 2"), ("2+2?", "4"), ("Größe?", "10 µm"), ('say "hi", twice', "hi,\nhi")]
FORMATS = {
    "prompt_completion": lambda q, a: {"prompt": q, "completion": a},
    "prompt_completion_messages": lambda q, a: {
        "prompt": [{"role": "user", "content": q}],
        "completion": [{"role": "assistant", "content": a}],
    },
    "messages": lambda q, a: {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]},
    "messages_parts": lambda q, a: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": q}]},
            {"role": "assistant", "content": a, "name": None},
        ]
    },
    "sharegpt": lambda q, a: {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]},
    "alpaca": lambda q, a: {"instruction": q, "input": "", "output": a},
}


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer(template("chatml"))


def rows(source: Source) -> list[Example]:
    found = list(source.examples())
    assert not any(isinstance(row, BadRow) for row in found), found
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_row(name, tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [FORMATS[name](q, a) for q, a in PAIRS])
    for example, (q, a) in zip(rows(Source(str(path))), PAIRS, strict=True):
        text = marked_bytes(tokenizer, Encoder(tokenizer)(example))
        assert text == f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n[[{a}<|im_end|>]]\n"
        assert example.reference == a


def marked_bytes(tokenizer, encoded) -> str:
    cut = int(np.flatnonzero(encoded.trained)[0]), int(np.flatnonzero(encoded.trained)[-1]) + 1
    parts = encoded.ids[: cut[0]], encoded.ids[cut[0] : cut[1]], encoded.ids[cut[1] :]
    return "{}[[{}]]{}".format(*(tokenizer.decode(part) for part in parts))


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    "name",
    "a.jsonl a.ndjson a.json indented.json lines.json table.json a.csv a.tsv a.parquet a.arrow a.jsonl.gz a.jsonl.bz2 "
    "a.jsonl.xz a.jsonl.zst a.csv.gz a.json.gz bom.jsonl windows.jsonl".split(),
)
def test_every_kind_of_file_gives_the_same_rows(name, tmp_path):
    table = [{"prompt": q, "completion": a} for q, a in PAIRS]
    path = tmp_path / name
    lines = "".join(json.dumps(row) + "\n" for row in table).encode()
    contents = {
        "a.jsonl": lines,
        "a.ndjson": lines,
        "a.json": json.dumps(table).encode(),
        "indented.json": json.dumps(table, indent=2, ensure_ascii=False).encode(),
        "lines.json": lines,
        "table.json": json.dumps({"version": 1, "data": table}).encode(),
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.bz2": bz2.compress(lines),
        "a.jsonl.xz": lzma.compress(lines),
        "a.json.gz": gzip.compress(json.dumps(table).encode()),
        "bom.jsonl": b"\xef\xbb\xbf" + lines,
        "windows.jsonl": lines.replace(b"\n", b"\r\n\r\n"),
    }
    if name in contents:
        path.write_bytes(contents[name])
    elif name == "a.parquet":
        datasets.Dataset.from_list(table).to_parquet(path)
    elif name == "a.jsonl.zst":
        with pa.output_stream(str(path), compression="zstd") as file:
            file.write(lines)
    elif name == "a.arrow":
        datasets.Dataset.from_list(table).save_to_disk(tmp_path / "saved")
        path = next((tmp_path / "saved").glob("*.arrow"))
    else:
        write_csv(tmp_path / "plain", table, "\t" if "tsv" in name else ",")
        data = (tmp_path / "plain").read_bytes()
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert [(e.messages[0]["content"], e.messages[1]["content"]) for e in rows(Source(str(path)))] == PAIRS


def test_folder_glob_and_saved_dataset(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    write_jsonl(tmp_path / "data" / "b.jsonl", [{"prompt": "3", "completion": "c"}])
    write_jsonl(tmp_path / "data" / "a.jsonl", [{"prompt": "1", "completion": "a"}])
    write_jsonl(tmp_path / "data" / "deep" / "z.jsonl", [FORMATS["messages"]("4", "d")])
    (tmp_path / "data" / "README.md").write_text("not data")

    def prompts(path):
        return [example.messages[0]["content"] for example in rows(Source(str(path)))]

    assert prompts(tmp_path / "data") == ["1", "3", "4"]
    assert prompts(tmp_path / "data" / "*.jsonl") == ["1", "3"]
    table = datasets.Dataset.from_list([{"prompt": "5", "completion": "e"}])
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "saved")
    assert prompts(tmp_path / "saved") == ["5"]
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        list(Source(str(tmp_path / "saved"), split="test").examples())
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="has no data files"):
        list(Source(str(tmp_path / "none")).examples())
    with pytest.raises(UserError, match="No file matches"):
        list(Source(str(tmp_path / "*.csv")).examples())


def test_hub_name(monkeypatch):
    asked = {}

    def load(path, name, split, streaming):
        asked.update(path=path, name=name, split=split, streaming=streaming)
        return iter([{"question": str(i), "answer": "a"} for i in range(9)])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "why_not_reached", lambda: None)
    source = Source(
        "openai/gsm8k", subset="main", split="test", streaming=True, max_rows=3,
        columns={"prompt": "question", "completion": "answer"},
    )  # fmt: skip
    assert [example.messages[0]["content"] for example in rows(source)] == ["0", "1", "2"]
    assert asked == {"path": "openai/gsm8k", "name": "main", "split": "test", "streaming": True}
    assert source.name == "gsm8k"
    whole = Source("openai/gsm8k", streaming=True, columns={"prompt": "question", "completion": "answer"})
    assert len(list(whole.examples())) == 9


def test_name_that_is_neither_here_nor_on_the_hub(monkeypatch):
    def load(*args, **kwargs):
        raise FileNotFoundError("Couldn't find 'no/such' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "why_not_reached", lambda: None)
    with pytest.raises(UserError, match="neither a file or folder here"):
        list(Source("no/such").examples())


def test_missing_file_names_its_neighbours(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{}])
    with pytest.raises(UserError, match=r"There is no file .*trian\.jsonl.*train\.jsonl"):
        list(Source(str(tmp_path / "trian.jsonl")).examples())


def test_columns_map_and_missing_ones_are_listed(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "q.jsonl", [{"question": "a", "answer": "b", "completion": "not this"}])
    example = rows(Source(str(path), columns={"prompt": "question", "completion": "answer"}))[0]
    assert [m["content"] for m in example.messages] == ["a", "b"]
    with pytest.raises(UserError, match=r"no known format has the columns question, answer, completion\. .*alpaca"):
        list(Source(str(path)).examples())
    bad = list(Source(str(path), "prompt_completion", columns={"prompt": "task"}).examples())
    assert bad[0].reason == "missing column task; the row has question, answer, completion"


def test_unknown_suffix(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"unknown kind of file '\.xlsx'"):
        list(Source(str(tmp_path / "a.xlsx")).examples())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}, "got text and list"),
        (
            {"messages": [{"role": "user", "content": "a", "train": True}, {"role": "assistant", "content": "b"}]},
            "flagged",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": "a lot"}]},
            "finite number, the weight of the loss, got 'a lot'",
        ),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}]}, "function.name"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": 1}]},
            "true or false",
        ),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "unknown role 'alien'"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": "{"},
            "tools is",
        ),
    ],
)
def test_bad_rows_say_why(row, reason):
    with pytest.raises(BadRowError, match=reason):
        to_example(row, detect(row))


def test_text_files_have_a_row_a_line(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("one line\n\nanother\n")
    encoded = [marked(tokenizer, Encoder(tokenizer)(example)) for example in rows(Source(str(tmp_path / "a.txt")))]
    assert encoded == ["[[one line<|im_end|>]]", "[[another<|im_end|>]]"]


def test_system_prompts_of_row_source_and_data_module(tmp_path, tokenizer):
    with_own = {"messages": [{"role": "system", "content": "own"}, *FORMATS["messages"]("a", "b")["messages"]]}
    write_jsonl(tmp_path / "a.jsonl", [with_own, FORMATS["messages"]("a", "b")])
    write_jsonl(
        tmp_path / "b.jsonl", [{"prompt": "c", "completion": "d"}, {**FORMATS["alpaca"]("e", "f"), "system": "s"}][:1]
    )
    data = SFTDataModule(
        train=[Source(str(tmp_path / "a.jsonl"), system="source"), str(tmp_path / "b.jsonl")],
        system="module", tokenizer=tokenizer, shuffle=False, batch_size=1,
    )  # fmt: skip
    data.setup("fit")
    texts = [tokenizer.decode(batch["input_ids"][0]) for batch in data.train_dataloader()]
    assert [text.split("\n")[1].removesuffix("<|im_end|>") for text in texts] == ["own", "source", "module"]


def test_rows_without_answers_are_for_prediction_only(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    data = SFTDataModule(train=str(path), predict=str(path), tokenizer=tokenizer)
    with pytest.raises(UserError, match="no known format"):
        data.setup("fit")
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert (batch["labels"] == -100).all()
    prompts = [row.prompt_text for row in data.generation_rows("predict", None)]
    assert prompts == [f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n" for q in "ab"]
    assert [row.reference for row in data.generation_rows("predict", 1)] == [None]
