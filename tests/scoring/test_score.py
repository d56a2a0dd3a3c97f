"""Scores of single rows: against plain transformers, compared with an earlier file, and with planted wrong labels."""

import json
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.data import LossWeights
from lightning_sft.errors import UserError
from lightning_sft.export.folder import write_folder
from lightning_sft.models.finished import load_finished
from lightning_sft.scoring import score
from lightning_sft.scoring.score import describe, score_rows
from tests.toys import toy_model, toy_tokenizer


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count: int, first: int = 0) -> list[dict[str, object]]:
    return [{"prompt": f"say {i}", "completion": "w" * (1 + i * i % 7) + str(i)} for i in range(first, first + count)]


def chat(question: str, answer: str, then: str, last: str) -> dict[str, object]:
    turns = [("user", question), ("assistant", answer), ("user", then), ("assistant", last)]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The same toy before and after some movement of its weights."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("before", "after"):
        model = toy_model()
        if name == "after":
            generator = torch.Generator().manual_seed(3)
            with torch.no_grad():
                for p in model.parameters():
                    p += 0.05 * torch.randn(p.shape, generator=generator)
        model.save_pretrained(folder / name)
        toy_tokenizer().save_pretrained(folder / name)
    return {name: load_finished(folder / name, device="cpu") for name in ("before", "after")}


def some_data(tmp_path: Path, **settings) -> SFTDataModule:
    train = jsonl(tmp_path / "train.jsonl", pairs(7))
    chats = jsonl(tmp_path / "chats.jsonl", [chat("hi", "ho", "again", "yes"), chat("a", "b", "c", "dd")])
    given = {"train": train, "val": {"pairs": jsonl(tmp_path / "pairs.jsonl", pairs(5, 50)), "chats": chats}}
    return SFTDataModule(**{**given, "batch_size": 3, "cache_dir": False, **settings})


def expected(folder: str, row, ends: set[int]) -> dict[str, object]:
    """One row on its own through transformers' own logits, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.as_tensor(row.ids.astype("int64"))[None]
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
    places = [i for i in range(1, ids.shape[1]) if row.trained[i]]
    values = [float(logp[i - 1, ids[0, i]]) for i in places]
    wrong = [i for i in places if int(logp[i - 1].argmax()) != int(ids[0, i])]
    answers, total, right, ended = [], 0.0, True, False
    for n, i in enumerate(places):
        if n and places[n - 1] != i - 1:
            total, right, ended = 0.0, True, False
        if not ended:
            total, right = total + values[n], right and i not in wrong
            ended = int(ids[0, i]) in ends
            answers += [(total, right)] if ended else []
    return {
        "tokens": len(places),
        "nll": -sum(values) / len(values),
        "mean_p": sum(map(torch.tensor(values).exp().tolist().__getitem__, range(len(values)))) / len(values),
        "lowest_logp": min(values),
        "first_wrong": wrong[0] if wrong else None,
        "answers": len(answers),
        "exact_match": all(right for _, right in answers) if answers else None,
        "pass_at_1": float(torch.tensor([t for t, _ in answers]).exp().mean()) if answers else None,
    }


def test_every_row_equals_plain_transformers(models, tmp_path):
    data = some_data(tmp_path)
    report = score_rows(models["after"], data, tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [line["set"] for line in table] == ["train"] * 7 + ["val/pairs"] * 5 + ["val/chats"] * 2
    assert [line["row"] for line in table] == [*range(7), *range(7)]
    assert table[3]["where"].endswith("train.jsonl:4")
    assert table[3]["source"] == "train"
    for line in table:
        row = data.dataset("train" if line["set"] == "train" else "val")[line["row"]]
        for name, value in expected(models["after"].name, row, {0, 2}).items():
            assert line[name] == pytest.approx(value, abs=1e-5), name
    assert report.sets["val/chats"].answers == 4
    assert report.sets["train"].nll == pytest.approx(sum(r["nll"] * r["tokens"] for r in table[:7]))


def test_a_row_that_was_cut_has_no_answer(tmp_path, models):
    text = jsonl(tmp_path / "v.jsonl", [{"text": "some text"}])
    data = SFTDataModule(val=text, max_length=7, truncation="right", cache_dir=False)
    report = score_rows(models["before"], data, tmp_path / "rows.parquet")
    (line,) = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert line["exact_match"] is None
    assert line["pass_at_1"] is None
    assert line["answers"] == 0
    assert line["tokens"] > 5
    assert "-" in describe(report, tmp_path / "rows.parquet").splitlines()[1]


def test_weight_and_text(tmp_path, models):
    weighted = [{**row, "weight": 0.5} for row in pairs(2)]
    data = SFTDataModule(
        train=[jsonl(tmp_path / "a.jsonl", weighted), jsonl(tmp_path / "b.jsonl", pairs(1, 8))],
        loss_weights=LossWeights(sources={"a": 3.0}),
        cache_dir=False,
    )
    score_rows(models["before"], data, tmp_path / "rows.parquet", text=True)
    table = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [line["weight"] for line in table] == [1.5, 1.5, 1.0]
    assert "\u27e6ww1" in table[1]["text"]
    assert "say 1" in table[1]["text"]


def test_a_comparison_joins_by_content_and_sorts_by_change(models, tmp_path):
    rows = pairs(9) + pairs(2)  # two rows stand there twice
    for name, order in (("before", rows), ("after", rows[::-1] + pairs(1, 77))):
        data = SFTDataModule(train=jsonl(tmp_path / f"{name}.jsonl", order), batch_size=2, cache_dir=False)
        compare = tmp_path / "before.parquet" if name == "after" else None
        report = score_rows(models[name], data, tmp_path / f"{name}.parquet", compare=compare, top=3)
    before = pq.read_table(tmp_path / "before.parquet").to_pylist()
    after = pq.read_table(tmp_path / "after.parquet").to_pylist()
    nll = {line["key"]: line["nll"] for line in before}
    *known, new = after
    assert new["change"] is None
    assert new["key"] not in nll
    for line in known:
        assert line["nll_before"] == pytest.approx(nll[line["key"]])
        assert line["change"] == pytest.approx(line["nll"] - line["nll_before"])
    changes = [line["change"] for line in known]
    assert changes == sorted(changes, reverse=True)
    assert len(set(changes)) > 5
    assert report.compared == 11
    assert [value for value, _ in report.worst] == changes[:3]
    assert "compared: 11 of 12 rows" in describe(report, tmp_path / "after.parquet")


def test_files_that_cannot_be_compared(models, tmp_path):
    model, data = models["before"], some_data(tmp_path)
    other = SFTDataModule(train=jsonl(tmp_path / "o.jsonl", pairs(30, 200) + pairs(2)), cache_dir=False)
    score_rows(model, other, tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"another data set: 2 of this run's 14 rows are among its 32"):
        score_rows(model, data, tmp_path / "rows.parquet", compare=tmp_path / "other.parquet")
    everything = some_data(tmp_path, train_on="all")
    score_rows(model, everything, tmp_path / "all.parquet")
    with pytest.raises(UserError, match="differ in how many are trained"):
        score_rows(model, data, tmp_path / "rows.parquet", compare=tmp_path / "all.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "all.parquet").read_bytes()[:-9])
    for name, message in (("torn", "no whole Parquet file"), ("none", "no such file")):
        with pytest.raises(UserError, match=message):
            score_rows(model, data, tmp_path / "rows.parquet", compare=tmp_path / f"{name}.parquet")
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "strange.parquet")
    with pytest.raises(UserError, match="has no column key, tokens"):
        score_rows(model, data, tmp_path / "rows.parquet", compare=tmp_path / "strange.parquet")
    assert not (tmp_path / "rows.parquet").exists()


def test_the_output_is_whole_or_not_there(models, tmp_path, monkeypatch):
    """Rows are written in groups beside the file; what fails half way leaves nothing, and nothing is overwritten."""
    monkeypatch.setattr(score, "WINDOW", 4)
    data = some_data(tmp_path)
    before = set(tmp_path.iterdir())
    calls = iter([None, None, RuntimeError("power cut")])
    real = score._read

    def read(*args):
        if error := next(calls):
            raise error
        return real(*args)

    monkeypatch.setattr(score, "_read", read)
    with pytest.raises(RuntimeError, match="power cut"):
        score_rows(models["before"], data, tmp_path / "rows.parquet")
    assert set(tmp_path.iterdir()) == before
    monkeypatch.setattr(score, "_read", real)
    score_rows(models["before"], data, tmp_path / "rows.parquet")
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 4  # 7 rows and 7 rows
    for output, message in (("rows.parquet", "exists, and nothing is overwritten"), ("rows.csv", r"ends in \.parquet")):
        with pytest.raises(UserError, match=message):
            score_rows(models["before"], data, tmp_path / output)
    with pytest.raises(UserError, match="nothing to score: the data have none of the sets test"):
        score_rows(models["before"], data, tmp_path / "test.parquet", sets=["test"])


def test_the_file_opens_with_pandas_and_polars(models, tmp_path):
    score_rows(models["before"], some_data(tmp_path), tmp_path / "rows.parquet", sets=["val"])
    frame = pd.read_parquet(tmp_path / "rows.parquet")
    assert frame.sort_values("nll").nll.is_monotonic_increasing
    assert len(frame) == 7
    polars = pytest.importorskip("polars")
    assert (
        polars.read_parquet(tmp_path / "rows.parquet").sort("nll")["row"].to_list()
        == frame.sort_values("nll").row.tolist()
    )


def test_planted_wrong_labels_are_at_the_top(toy_folder, tmp_path):
    """The page's recipe: train briefly, score what was trained on, sort by NLL."""
    kinds = {"cat": "animal", "dog": "animal", "oak": "plant", "fern": "plant"}
    words = [(word, f"{word} {i}") for i in range(24) for word in kinds]
    wrong = {5, 30, 58, 91}
    swap = {"animal": "plant", "plant": "animal"}
    rows = [
        {"prompt": text, "completion": swap[kinds[word]] if i in wrong else kinds[word]}
        for i, (word, text) in enumerate(words)
    ]
    data = SFTDataModule(train=jsonl(tmp_path / "rows.jsonl", rows), batch_size=16, cache_dir=False)
    module = SFTModule(str(toy_folder), optimizer=partial(torch.optim.AdamW, lr=5e-3), lr_scheduler="linear")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", devices=1, max_steps=100, enable_checkpointing=False, **quiet)
    trainer.fit(module, data)
    write_folder(module, tmp_path / "tuned")
    again = SFTDataModule(train=str(tmp_path / "rows.jsonl"), batch_size=16, cache_dir=False)
    score_rows(load_finished(tmp_path / "tuned", device="cpu"), again, tmp_path / "scores.parquet")
    frame = pd.read_parquet(tmp_path / "scores.parquet").sort_values("nll", ascending=False)
    assert set(frame.row[:4]) == wrong
    assert set(frame.sort_values("lowest_logp").row[:4]) == wrong
    assert not frame.exact_match[:4].any()
    assert frame.exact_match[4:].mean() > 0.9
    assert frame.first_wrong[4:].isna().mean() > 0.9
