"""`lightning score`: which model it scores, and what it refuses before it loads one."""

import pyarrow.parquet as pq
import pytest

from lightning_sft.cli.entry import main
from tests.running import run, run_folder, toy_arguments, write_rows

CONFIG = "lightning_logs/version_0/config.yaml"
# peft 0.21 asks transformers 5.23 for an attribute under its old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def rows(path: str) -> list[dict[str, object]]:
    return pq.read_table(path).to_pylist()


def score(*arguments: str) -> None:
    run("score", ["--config", CONFIG, *arguments])


def test_the_start_a_checkpoint_and_an_exported_adapter(toy_folder, tmp_path, capsys):
    """One run's config.yaml serves all three; the exported folder scores as its checkpoint does."""
    settings = {"model__adapter": "peft.LoraConfig", "model__optimizer": "torch.optim.AdamW"}
    settings["model__optimizer.lr"] = "0.05"
    run("fit", toy_arguments(toy_folder, write_rows(tmp_path / "rows.jsonl"), **settings))
    score("--output=start.parquet", "--model.dtype=fastest")
    capsys.readouterr()
    score("--ckpt_path=best", "--output=best.parquet", "--compare=start.parquet", "--top=2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["set", "rows", "tokens"]
    assert [line.split()[:2] for line in lines[1:3]] == [["train", "20"], ["val", "4"]]
    assert lines[3] == "compared: 24 of 24 rows; exact match gained in 0, lost in 0"
    assert lines[4] == "largest rise of NLL:"
    assert "rows.jsonl:" in lines[5]
    assert lines[-1] == "Written, a line a row, to best.parquet"
    assert len(lines) == 8
    assert any(abs(line["change"]) > 1e-3 for line in rows("best.parquet"))
    run("export", [f"--ckpt_path={run_folder() / 'checkpoints' / 'best.ckpt'}", "--output=exported"])
    score("--model=exported", "--output=exported.parquet", "--sets=[val]", "--text=true")
    best = {line["key"]: line for line in rows("best.parquet")}
    exported = rows("exported.parquet")
    assert len(exported) == 4
    for line in exported:
        assert line["nll"] == pytest.approx(best[line["key"]]["nll"], abs=1e-6)
        assert line["text"].count("\u27e6") == 1


def test_what_is_refused_before_a_model_is_loaded(toy_folder, tmp_path, capsys):
    (tmp_path / "here.parquet").write_text("")
    given = toy_arguments(toy_folder, write_rows(tmp_path / "rows.jsonl"))
    cases = {
        " --output here-2.parquet": ["--output=here.parquet"],
        "needs --output FILE, the Parquet file to write": [],
        "--model has no value": ["--output=new.parquet", "--model"],
        "both given": ["--output=new.parquet", "--model=x", "--ckpt_path=best"],
        "no run with a checkpoint": ["--output=new.parquet", "--ckpt_path=best"],
        "There is no model folder './nowhere'": ["--output=new.parquet", "--model", "./nowhere"],
        "Got value: dev": ["--output=new.parquet", "--sets=[dev]"],
        "--top is -1": ["--output=new.parquet", "--top=-1"],
        "model.init is random": ["--output=new.parquet", "--model.init=random"],
    }
    for message, arguments in cases.items():
        with pytest.raises(SystemExit) as exit_:
            main(["score", *given, *arguments])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new.parquet").exists()


def test_inspect_reads_the_configuration_of_a_run(toy_folder, tmp_path, capsys):
    run("fit", toy_arguments(toy_folder, write_rows(tmp_path / "rows.jsonl"), trainer__max_steps=1))
    capsys.readouterr()
    run("inspect", ["--config", CONFIG, "--rows=1", "--color=false"])
    assert "train row 0" in capsys.readouterr().out
