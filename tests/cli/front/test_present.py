"""What settings name and this machine lacks: told apart from hub names, classes and what the verb does not read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_sft.cli.front.present import require_checkpoint, require_present
from lightning_sft.errors import UserError
from lightning_sft.places import shipped_folder

MODEL = ["--model=some/model"]
NAMED = """
data:
  train: [here.jsonl, {class_path: lightning_sft.data.Source, init_args: {path: here.jsonl}}]
  val: {a: here.jsonl, b: {sources: [here.jsonl, gone.csv], every: 2}}
"""

FINE = {
    "a file": ["fit", *MODEL, "--train", "here.jsonl"],
    "a name on the hub": ["fit", *MODEL, "--train", "someone/rows"],
    "a list": ["fit", *MODEL, "--train", "[here.jsonl, someone/rows]"],
    "a pattern": ["fit", *MODEL, "--train", "h*.jsonl"],
    "no rows": ["fit", *MODEL, "--train", "here.jsonl", "--data.val=null"],
    "a source of the user's own": ["fit", *MODEL, "--train", "mine.Source", "--data.train.path=gone.jsonl"],
    "data of the user's own": ["fit", *MODEL, "--data", "mine.Data", "--data.train=gone.jsonl"],
    "rows of another verb": ["fit", *MODEL, "--train", "here.jsonl", "--data.test=gone.jsonl"],
    "rows that are shipped": ["fit", *MODEL, f"--config={shipped_folder()}/experiment/silent_failure.yaml"],
    "a path given later": ["fit", *MODEL, "--train", "Source", "--data.train.path=gone.csv", "--data.train=here.jsonl"],
    "a path for a file's class": ["fit", "--config=source.yaml", "--data.train.path=here.jsonl", *MODEL],
    "a folder on the way": ["estimate", "--model=models/gone/config.json"],
    "what is still to come": ["init", "--model=./gone", "--train=gone.jsonl"],
    "a question": ["fit", "--model=./gone", "--train=gone.jsonl", "--print_config"],
    "arms with rows of their own": ["compare", *MODEL, "--train=gone.jsonl", "--arm", "a", "data.train=here.jsonl"],
    "a set that an audit may not read": ["audit", "--config=tested.yaml", "--after=some/model"],
    "a checkpoint": ["fit", *MODEL, "--train=here.jsonl", "--ckpt_path=here.ckpt"],
    "the best checkpoint": ["test", *MODEL, "--data.test=here.jsonl", "--ckpt_path=best"],
    "no checkpoint": ["validate", *MODEL, "--data.val=here.jsonl", "--ckpt_path=null"],
    "a checkpoint elsewhere": ["fit", *MODEL, "--train=here.jsonl", "--ckpt_path=s3://bucket/last.ckpt"],
    "rows held out of others": ["validate", *MODEL, "--train=here.jsonl", "--data.val_split=0.1"],
    "settings elsewhere": ["test", *MODEL, "--config=s3://bucket/run.yaml"],
    "a checkpoint that a comparison refuses": ["compare", *MODEL, "--ckpt_path=gone.ckpt"],
    "a task": ["fit", *MODEL, "--train=ReasoningGymTask"],
}
WRONG = {
    "a file": (["fit", *MODEL, "--train", "gone.jsonl"], "--data.train: There is no file gone.jsonl"),
    "one of a list": (["fit", *MODEL, "--train", "[here.jsonl, gone.csv]"], "no file gone.csv"),
    "in a named set": (["fit", "--config=named.yaml", *MODEL], "named.yaml, line 3: data.val: There is no file gone"),
    "a path apart": (["fit", *MODEL, "--train=Source", "--data.train.path", "gone.csv"], "--data.train.path: There is"),
    "a path of a file": (["inspect", "--config=source.yaml", *MODEL], "source.yaml, line 1: data.train: There is no"),
    "rows to validate": (["validate", *MODEL, "--data.val=gone.jsonl"], "--data.val"),
    "rows to test": (["test", *MODEL, "--data.test=gone.jsonl"], "--data.test"),
    "no rows to test": (["test", *MODEL, "--train=here.jsonl"], "data.test is not set"),
    "no rows to test, but others": (
        ["test", *MODEL, "--train=here.jsonl", "--data.val_split=0.1"],
        "or read the rows that were held out: lightning validate",
    ),
    "no rows to validate on": (["validate", *MODEL, "--train=here.jsonl", "--data.val=null"], "--data.val_split 0.05"),
    "no rows to train on": (["fit", *MODEL], "`lightning init --train FILE`"),
    "no rows to advise on": (["advise", *MODEL], "There is nothing for advise: data.train is not set"),
    "a folder": (["predict", "--model=~/gone", "--data.predict=here.jsonl"], "no model folder '~/gone'"),
    "a checkpoint": (
        ["fit", *MODEL, "--ckpt_path=gone.ckpt", "--train=here.jsonl"],
        "--ckpt_path: The checkpoint 'gone.ckpt' does not exist",
    ),
    "a checkpoint to score": (["score", *MODEL, "--ckpt_path", "~/gone.ckpt"], "'~/gone.ckpt' does not exist"),
    "a checkpoint of a file": (
        ["fit", "--config=going.yaml", *MODEL, "--train=here.jsonl"],
        "going.yaml, line 1: ckpt_path: The checkpoint",
    ),
    "a folder of checkpoints": (
        ["test", *MODEL, "--data.test=here.jsonl", "--ckpt_path=."],
        "Give one of them: here.ckpt",
    ),
    "a GGUF file": (["fit", "--model=gone.gguf", "--train=here.jsonl"], "no GGUF file 'gone.gguf'"),
}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    (tmp_path / "here.jsonl").write_text("{}")
    (tmp_path / "here.ckpt").touch()
    (tmp_path / "going.yaml").write_text("ckpt_path: gone.ckpt\n")
    (tmp_path / "named.yaml").write_text(NAMED.lstrip())
    (tmp_path / "tested.yaml").write_text("data: {test: gone.jsonl}\n")
    (tmp_path / "source.yaml").write_text("data: {train: {class_path: Source, init_args: {path: gone.jsonl}}}\n")


@pytest.mark.parametrize("name", FINE)
def test_it_is_left_to_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.cli.front.present.is_installed", lambda module: True)
    verb, *arguments = FINE[name]
    require_present(verb, arguments)


@pytest.mark.parametrize("name", WRONG)
def test_it_is_named(name: str) -> None:
    (verb, *arguments), words = WRONG[name]
    with pytest.raises(UserError) as refused:
        require_present(verb, arguments)
    assert words in str(refused.value)


def test_a_task_without_its_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.cli.front.present.is_installed", lambda module: module != "reasoning_gym")
    with pytest.raises(UserError, match=r"pip install 'lightning-sft\[demo\]'"):
        require_present("fit", [*MODEL, "--data.train=lightning_sft.data.ReasoningGymTask"])


@pytest.mark.parametrize("verb", ["chat", "export"])
def test_verbs_without_settings_look_for_their_checkpoint_before_torch_is_imported(verb: str) -> None:
    require_checkpoint(["--ckpt_path", "best", "--output", "gone"])
    require_checkpoint(["--model", "gone"])
    command = [sys.executable, "-X", "importtime", "-m", "lightning_sft", verb, "--ckpt_path=gone.ckpt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--ckpt_path: The checkpoint 'gone.ckpt' does not exist" in done.stderr
    assert not re.search(r"\| +(torch|lightning|transformers)$", done.stderr, re.M)
