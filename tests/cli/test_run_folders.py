"""Where runs keep their files: no run replaces another's, best never gets worse, last and best find the newest run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import LastCheckpoint
from lightning_sft.checkpoints import runs
from lightning_sft.cli.run_folders import tell_other_settings
from lightning_sft.errors import UserError
from tests.running import run, toy_arguments, write_rows

FOLDER = Path("lightning_logs/version_0/checkpoints")
LAST_FLAG = ["--trainer.callbacks+=LastCheckpoint", "--trainer.callbacks.every_n_train_steps=2"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


def stored(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def best_score(path: Path) -> float:
    states = stored(path)["callbacks"]
    return float(next(v["best_model_score"] for k, v in states.items() if k.startswith("ModelCheckpoint")))


# ---------------------------------------------------------------------- best


#: the validation gets worse from step to step
WORSE = ["--model.optimizer=AdamW", "--model.optimizer.lr=1e-3", "--model.optimizer.maximize=true"]


@pytest.mark.parametrize("flag", [[], LAST_FLAG], ids=["default", "LastCheckpoint first"])
@pytest.mark.parametrize("moved", [False, True], ids=["in place", "moved"])
def test_best_never_gets_worse(flag, moved, toy_folder, rows) -> None:
    def fit(steps: int, *more: str) -> None:
        settings = {"trainer__max_steps": steps, "trainer__val_check_interval": 3}
        run("fit", [*toy_arguments(toy_folder, rows, **settings), *WORSE, *flag, *more])

    fit(3)
    best = FOLDER / "best.ckpt"
    score = best_score(best)
    if moved:
        Path("elsewhere").mkdir()
        shutil.move("lightning_logs", "elsewhere")
        best = "elsewhere" / best
    fit(9, "--ckpt_path=last", f"--trainer.default_root_dir={'elsewhere' if moved else '.'}")
    assert stored(best.with_name("last.ckpt"))["global_step"] == 9
    assert stored(best)["global_step"] == 3
    assert runs.find_checkpoint(str(best.parent.parent), []) == best, "a run's folder means its best checkpoint"
    assert best_score(best.with_name("last.ckpt")) == score


def test_a_better_one_that_a_killed_run_left_is_kept(toy_folder, rows) -> None:
    arguments = toy_arguments(toy_folder, rows, trainer__val_check_interval=2)
    run("fit", [*arguments, "--trainer.max_steps=2"])
    shutil.copy(FOLDER / "last.ckpt", "earlier.ckpt")
    run("fit", [*arguments, "--trainer.max_steps=4", "--ckpt_path=last"])
    later = best_score(FOLDER / "best.ckpt")
    assert later < best_score(Path("earlier.ckpt"))
    shutil.move("earlier.ckpt", FOLDER / "last.ckpt")  # as if killed before last.ckpt followed
    run("fit", [*arguments, "--trainer.max_steps=3", "--ckpt_path=last"])
    assert best_score(FOLDER / "last.ckpt") == later


def test_a_best_checkpoint_that_is_gone_is_made_again(toy_folder, rows) -> None:
    arguments = toy_arguments(toy_folder, rows, trainer__val_check_interval=2)
    run("fit", [*arguments, "--trainer.max_steps=2"])
    (FOLDER / "best.ckpt").unlink()
    run("fit", [*arguments, "--trainer.max_steps=4", "--ckpt_path=last"])
    assert stored(FOLDER / "best.ckpt")["global_step"] == 4


# ---------------------------------------------------------------------- folders


def test_a_run_without_a_logger_has_a_folder_of_its_own(toy_folder, rows) -> None:
    arguments = [*toy_arguments(toy_folder, rows), "--trainer.logger=false", *LAST_FLAG]
    run("fit", arguments)
    run("fit", arguments)
    both = [Path(f"lightning_logs/version_{i}/checkpoints/last.ckpt") for i in range(2)]
    first = both[0].read_bytes()
    run("fit", [*arguments, "--ckpt_path=last", "--trainer.max_steps=5"])
    assert [stored(path)["global_step"] for path in both] == [3, 5]
    assert both[0].read_bytes() == first
    names = sorted(path.name for path in both[1].parents[1].iterdir())
    assert names == ["checkpoints", "config.yaml", "config_resumed_at_step_3.yaml"]


def test_so_does_a_run_in_python(toy_folder, rows) -> None:
    for _ in range(2):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
        trainer = Trainer(max_steps=2, callbacks=[LastCheckpoint(), ModelCheckpoint(filename="best")], **quiet)
        trainer.fit(SFTModule(str(toy_folder)), SFTDataModule(str(rows), batch_size=4))
    found = sorted(str(path) for path in Path().rglob("*.ckpt"))
    assert found == [f"lightning_logs/version_{i}/checkpoints/{n}.ckpt" for i in range(2) for n in ("best", "last")]


def loggers(*folders: str) -> str:
    names = ("TensorBoardLogger", "CSVLogger")
    listed = [{"class_path": n, "init_args": {"save_dir": f}} for n, f in zip(names, folders, strict=True)]
    return f"--trainer.logger={json.dumps(listed)}"


def test_all_loggers_of_a_run_go_on_and_lose_nothing(toy_folder, rows) -> None:
    arguments = toy_arguments(toy_folder, rows)
    run("fit", [*arguments, "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=b"])
    other = Path("b/lightning_logs/version_0/metrics.csv").read_text()
    run("fit", [*arguments, loggers("a", "b")])
    before = Path("b/lightning_logs/version_1/metrics.csv").read_text()
    run("fit", [*arguments, loggers("a", "b"), "--ckpt_path=last", "--trainer.max_steps=5"])
    assert stored(Path("a/lightning_logs/version_1/checkpoints/last.ckpt"))["global_step"] == 5
    assert Path("b/lightning_logs/version_0/metrics.csv").read_text() == other
    assert Path("b/lightning_logs/version_1/metrics_before_resume_0.csv").read_text() == before
    assert ",4," in Path("b/lightning_logs/version_1/metrics.csv").read_text()
    assert len(list(Path().glob("a/lightning_logs/version_1/config*.yaml"))) == 2
    assert {path.name for path in Path("a/lightning_logs").iterdir()} == {"version_1"}


def test_a_run_is_found_below_any_of_its_loggers(tmp_path: Path) -> None:
    """As W&B keeps it, first of two loggers: project/id/checkpoints."""
    from jsonargparse import Namespace

    from lightning_sft.cli import run_folders

    wandb = Namespace(class_path=run_folders.WANDB, init_args=Namespace(save_dir=".", project="p", version=None))
    csv = Namespace(class_path=run_folders.CSV, init_args=Namespace(save_dir="a", name="lightning_logs", version=None))
    trainer = Namespace(logger=[wandb, csv], default_root_dir=None, callbacks=None, fast_dev_run=False, barebones=False)
    folder = Path("p/x1y2/checkpoints")
    folder.mkdir(parents=True)
    Path("a/lightning_logs/version_4").mkdir(parents=True)
    kept = [
        {"class": "WandbLogger", "save_dir": ".", "name": "p", "version": "x1y2"},
        {"class": "CSVLogger", "save_dir": "a", "name": "lightning_logs", "version": "4"},
    ]
    state = {"pytorch-lightning_version": "2.6", "callbacks": {runs.RUN_STATE: {"loggers": kept}}}
    torch.save(state, folder / "last.ckpt")
    found = runs.find_checkpoint("last", run_folders.roots(trainer))
    assert found == folder / "last.ckpt"
    run_folders.go_on(trainer, found, "fit")
    assert (wandb.init_args.version, csv.init_args.version) == ("x1y2", "version_4")
    run_folders.forget_versions(trainer)
    assert (wandb.init_args.version, csv.init_args.version) == (None, None)


# ---------------------------------------------------------------------- damaged checkpoints


def test_a_damaged_last_names_the_newest_whole_one(toy_folder, rows, capsys) -> None:
    arguments = toy_arguments(toy_folder, rows, trainer__val_check_interval=2)
    run("fit", [*arguments, "--trainer.max_steps=2"])
    content = (FOLDER / "last.ckpt").read_bytes()
    (FOLDER / "last.ckpt").write_bytes(content[: len(content) // 2])
    for which, says in (("last", f"Whole is: --ckpt_path {FOLDER / 'best.ckpt'}"), (FOLDER / "last.ckpt", "cut off")):
        for verb in ("fit", "validate"):
            with pytest.raises(SystemExit) as end:
                run(verb, [*arguments, f"--ckpt_path={which}"])
            assert end.value.code == 2
            assert says in capsys.readouterr().err
    assert runs.find_checkpoint("best", [Path("lightning_logs")]) == (FOLDER / "best.ckpt")
    with pytest.raises(UserError, match="cut off"):
        Trainer(accelerator="cpu", logger=False, callbacks=[LastCheckpoint()]).fit(
            SFTModule(str(toy_folder)), SFTDataModule(str(rows)), ckpt_path=FOLDER / "last.ckpt"
        )


def test_a_word_for_the_newest_run_says_where_that_run_was_made_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-5, "betas": [0.9, 0.999]}}
    made = {"model": {"model_name_or_path": "toy", "optimizer": optimizer}, "data": {"train": "tiny.jsonl", "val": 3}}
    (run / "config.yaml").write_text(yaml.safe_dump(made))
    last = run / "checkpoints" / "last.ckpt"

    def told(lr: float, train: str, which: str = "last") -> str:
        arguments = Namespace(lr=lr, betas=(0.9, 0.999))
        model = Namespace(model_name_or_path="toy", optimizer=Namespace(class_path="torch.optim.AdamW"))
        model.optimizer.init_args = arguments
        tell_other_settings(which, last, Namespace(model=model, data=Namespace(train=train, val=9)))
        return capsys.readouterr().err

    assert told(2e-5, "tiny.jsonl") == "", "what is read may differ"
    assert told(3e-3, "rows.jsonl", str(run)) == "", "a run that is named is meant"
    said = told(3e-3, "rows.jsonl")
    assert "is of the newest run, " in said
    assert (
        "model.optimizer.lr is 2e-05 there and 0.003 here; data.train is tiny.jsonl there and rows.jsonl here" in said
    )
