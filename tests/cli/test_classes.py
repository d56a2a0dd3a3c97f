"""A user's subclasses of the module and the data module, on the command line and in files."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from lightning_sft.cli.classes import choose_classes
from lightning_sft.cli.entry import main
from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from lightning_sft.module import SFTModule
from tests.running import QUIET, run, run_folder, write_rows

MINE = '''
import torch
from lightning_sft import SFTDataModule, SFTModule

class MyModule(SFTModule):
    """A module with a setting of its own."""

    def __init__(self, model_name_or_path: str, pull: float = 0.0, **kwargs) -> None:
        super().__init__(model_name_or_path, **kwargs)
        self.pull = pull

    def training_step(self, batch, batch_idx):
        returned = super().training_step(batch, batch_idx)
        returned["extra_loss"] = self.pull * sum(p.square().sum() for p in self.parameters())
        return returned

    def on_train_end(self) -> None:
        print("pull", self.pull, type(self.trainer.datamodule).__name__)

class MyData(SFTDataModule):
    """A data module of one's own."""

class Other(torch.nn.Module):
    pass
'''


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(MINE)
    yield tmp_path
    sys.modules.pop("mine", None)


def test_a_class_in_a_file_trains_and_its_config_starts_it_again(
    mine: Path, toy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = str(write_rows(mine / "rows.jsonl"))
    content = {
        "model": {
            "class_path": "mine.MyModule",
            "init_args": {"model_name_or_path": str(toy_folder), "pull": 0.5, "objective": "PowerFamily"},
        },
        "data": {"class_path": "mine.MyData", "init_args": {"train": rows, "val_split": 4, "batch_size": 4}},
        "trainer": {"max_steps": 1},
    }
    (mine / "mine.yaml").write_text(yaml.safe_dump(content))
    run("fit", ["--config", "mine.yaml", "--model.objective.alpha=1", *QUIET])
    assert "pull 0.5 MyData" in capsys.readouterr().out
    written = yaml.safe_load((run_folder() / "config.yaml").read_text())
    assert written["model"]["class_path"] == "mine.MyModule"
    assert written["model"]["init_args"]["objective"]["init_args"]["alpha"] == 1.0
    run("fit", [f"--config={run_folder() / 'config.yaml'}", "--model.pull=0.25"])
    assert "pull 0.25 MyData" in capsys.readouterr().out
    stored = torch.load(run_folder() / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["hyper_parameters"]["pull"] == 0.25
    run("validate", [f"--config={run_folder() / 'config.yaml'}", "--ckpt_path=last"])


def test_every_way_to_name_a_class_means_the_same(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(mine))
    (mine / "part.yaml").write_text("model: {class_path: mine.MyModule}\ntrainer: {max_steps: 3}\n")
    for arguments, expected in (
        (["--model=mine.MyModule", "--model.pull=1"], ["--model.pull=1"]),
        (["--model", "mine.MyModule", "--model.init_args.pull", "1"], ["--model.pull=1"]),
        (["--model.class_path", "mine.MyModule"], []),
        (["--model={class_path: mine.MyModule, init_args: {pull: 1}}"], ["--model={pull: 1}\n"]),
        (["--config=part.yaml"], ["--config=model: {}\ntrainer:\n  max_steps: 3\n"]),
    ):
        classes, rest = choose_classes(["fit", *arguments])
        assert classes["model"].__name__ == "MyModule"
        assert classes["data"] is SFTDataModule
        assert rest == ["fit", *expected]
    plain = [
        "fit",
        "--config",
        "none.yaml",
        "--model.lr_scheduler",
        "cosine",
        "--trainer.max_steps=3",
        "--print_config",
    ]
    classes, rest = choose_classes(plain)
    assert classes["model"] is SFTModule
    assert rest == [
        *("fit", "--config=none.yaml", "--model.lr_scheduler=cosine", "--trainer.max_steps=3", "--print_config")
    ]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--model=mine.Other", "'mine.Other' is no subclass of SFTModule"),
        ("--model=mine.Missing", "cannot be imported"),
        ("--data=nowhere.Data", "cannot be imported: No module named 'nowhere'"),
        ("--model={class_path: mine.MyModule, pull: 1}", "holds pull beside it"),
    ],
)
def test_classes_that_cannot_be_are_refused(
    argument: str, words: str, mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", argument])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    with pytest.raises(UserError):
        choose_classes(["fit", argument])
