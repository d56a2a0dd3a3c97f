"""Rows typed beside a run: its training rows' column names, and one set to validate on."""

import json
from pathlib import Path

import pytest
import yaml

from lightning_sft.cli.front.beside import settle_rows
from tests.running import run

RUN = Path("logs/run")
COLUMNS = {"prompt": "question", "completion": "answer"}


def source(path: str, columns: dict[str, str] | None = COLUMNS) -> dict[str, object]:
    return {"class_path": "lightning_sft.data.Source", "init_args": {"path": path, "columns": columns}}


def settings(path: Path, **data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"data": {"val": None, **data}}, sort_keys=False))


@pytest.fixture(autouse=True)
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = {
        "other.jsonl": {"question": "1+1?", "answer": "2", "id": 3},
        "questions.jsonl": {"question": "1+1?"},
        "ours.jsonl": {"prompt": "1+1?", "completion": "2"},
        "both.jsonl": {"prompt": "internal", "completion": "id-7", "question": "1+1?", "answer": "2"},
        "far.jsonl": {"q": "1+1?", "a": "2"},
    }
    for name, row in rows.items():
        Path(name).write_text(json.dumps(row) + "\n")
    Path("other.csv").write_text("question,answer\n1+1?,2\n")
    settings(RUN / "config.yaml", train=source("rows.jsonl"), val_split=4)
    settings(Path("plain.yaml"), train="ours.jsonl")
    settings(
        Path("validated.yaml"), train=source("rows.jsonl"), val=source("far.jsonl", {"prompt": "q", "completion": "a"})
    )
    settings(Path("listed.yaml"), train=["ours.jsonl", source("rows.jsonl")])
    settings(Path("two.yaml"), train=[source("a"), source("b", {"prompt": "answer", "completion": "question"})])
    (RUN / "checkpoints").mkdir()
    (RUN / "checkpoints" / "best.ckpt").touch()
    (RUN / "model").mkdir()


def mapped(verb: str, *typed: str) -> dict[str, object]:
    """What was added, by setting."""
    made, remarks = settle_rows(verb, typed)
    added = [word.removeprefix("--").partition("=") for word in made[len(typed) :]]
    assert list(typed) == made[: len(typed)]
    assert len(remarks) == len(added)
    return {name: yaml.safe_load(value) for name, _, value in added}


CONFIG = f"--config={RUN}/config.yaml"


@pytest.mark.parametrize(
    ("verb", "typed"),
    [
        ("test", [CONFIG, "--data.test", "other.jsonl"]),
        ("test", [CONFIG, "--data.test=other.csv"]),
        ("score", [CONFIG, "--data.test=other.*l"]),
        ("score", ["--ckpt_path", f"{RUN}/checkpoints/best.ckpt", "--data.test", "other.jsonl"]),
        ("score", ["--model", f"{RUN}/model", "--data.test", "other.jsonl"]),
        ("test", [CONFIG, "--data.test=both.jsonl"]),
        ("test", ["--config=listed.yaml", "--data.test=other.jsonl"]),
        ("test", [CONFIG, "--data.test", "Source", "--data.test.path=other.jsonl"]),
        ("test", ["--train=a.jsonl", f"--train.columns={json.dumps(COLUMNS)}", "--data.test=other.jsonl"]),
        ("audit", ["--after", str(RUN), "--data", "other.jsonl"]),
    ],
)
def test_rows_are_read_under_the_training_rows_names(verb: str, typed: list[str]) -> None:
    assert mapped(verb, *typed) == {"data.test.columns": COLUMNS}


def test_every_set_takes_them() -> None:
    assert mapped("fit", CONFIG, "--train=other.jsonl") == {"data.train.columns": COLUMNS}
    assert mapped("predict", CONFIG, "--data.predict=questions.jsonl") == {"data.predict.columns": COLUMNS}
    assert mapped("fit", "--config=validated.yaml", "--val=far.jsonl") == {
        "data.val.columns": {"prompt": "q", "completion": "a"}
    }, "a set's own mapping comes before that of the training rows"


@pytest.mark.parametrize(
    "typed",
    [
        [CONFIG, "--data.test=ours.jsonl"],
        [CONFIG, "--data.test=far.jsonl"],
        [CONFIG, "--data.test=questions.jsonl"],
        [CONFIG, "--data.test=someone/rows"],
        [CONFIG, "--data.test=gone.jsonl"],
        [CONFIG, "--data.test=other.jsonl", "--data.test.columns={prompt: answer, completion: question}"],
        [CONFIG, "--data.test=other.jsonl", "--data.test.init_args.columns.prompt=id"],
        [CONFIG, "--data.test=null"],
        [CONFIG],
        ["--config=plain.yaml", "--data.test=other.jsonl"],
        ["--config=two.yaml", "--data.test=other.jsonl"],
        [CONFIG, "--data", "mine.Data", "--data.test=other.jsonl"],
    ],
)
def test_rows_with_other_columns_or_their_own_mapping_stay_as_they_are(typed: list[str]) -> None:
    assert mapped("test", *typed) == {}


def test_the_remark_says_what_is_read_as_what() -> None:
    _, (remark,) = settle_rows("test", [CONFIG, "--data.test", "other.jsonl"])
    assert remark == (
        "other.jsonl: question is read as prompt, answer is read as completion, as in the training rows; "
        "--data.test.columns decides otherwise."
    )


def test_typed_rows_to_validate_on_replace_those_of_a_file() -> None:
    assert mapped("validate", CONFIG, "--data.val", "ours.jsonl") == {"data.val_split": None}
    assert mapped("validate", CONFIG, "--data.val=other.jsonl") == {"data.val.columns": COLUMNS, "data.val_split": None}
    assert mapped("fit", "--config=validated.yaml", "--data.val_split=0.1") == {"data.val": None}
    assert mapped("fit", "--config=validated.yaml", "--data.val_split=0.1", "--data.val=ours.jsonl") == {}, "an error"
    assert mapped("fit", "--config=plain.yaml", "--data.val=ours.jsonl") == {}
    _, (remark,) = settle_rows("validate", [CONFIG, "--data.val", "ours.jsonl"])
    assert f"--data.val was typed, so data.val_split of {RUN}/config.yaml holds no rows out of data.train." == remark


def test_the_command_line_reads_such_rows(toy_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("inspect", [CONFIG, f"--model={toy_folder}", "--train=other.jsonl", "--val=other.csv", "--rows=1"])
    printed = capsys.readouterr()
    assert "1+1?" in printed.out
    assert "val: 1 row " in printed.out
    assert printed.err.count("question is read as prompt") == 2
    *_, empty, advise, fit = printed.out.splitlines()
    assert (empty, advise.split()[:3], fit.split()[:2]) == ("", ["Next", "lightning", "advise"], ["lightning", "fit"])
    assert "--rows" not in fit
