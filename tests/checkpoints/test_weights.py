"""Checkpoints that are not the usual: weights alone, averages beside an adapter; fits that no validation was due in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import FinalValidation
from lightning_sft.errors import UserError
from tests.distributed.fits import lora
from tests.running import QUIET, run, toy_arguments, write_rows

FOLDER = Path("lightning_logs/version_0/checkpoints")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")  # 20 to train on: 5 steps an epoch


def stored(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.filterwarnings("ignore:`loftq_config` specified")
def test_a_checkpoint_of_weights_alone(toy_folder, rows, capsys) -> None:
    arguments = {"save_weights_only": True, "monitor": "val/nll", "filename": "b"}
    callback = json.dumps([{"class_path": "ModelCheckpoint", "init_args": arguments}])
    fit = [*toy_arguments(toy_folder, rows, trainer__max_steps=5), f"--trainer.callbacks={callback}"]
    run("fit", fit)
    assert "optimizer_states" not in stored(FOLDER / "b.ckpt")
    evaluate = [f"--model.model_name_or_path={toy_folder}", *QUIET, "--ckpt_path=best"]
    run("validate", [*evaluate, f"--data.val={rows}"])
    run("predict", [*evaluate, f"--data.predict={rows}", "--model.max_new_tokens=2"])
    run("export", ["--ckpt_path=best", "--output=exported"])
    assert Path("exported/model.safetensors").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run("fit", [*fit, "--trainer.max_steps=9", f"--ckpt_path={FOLDER / 'b.ckpt'}"])
    assert end.value.code == 2
    assert "weights alone" in capsys.readouterr().err
    run("fit", [*fit, "--trainer.max_steps=6", "--ckpt_path=last"])
    assert stored(FOLDER / "last.ckpt")["global_step"] == 6


@pytest.mark.parametrize("adapter", [True, False], ids=["LoRA", "full"])
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_averaged_weights_resume_bitwise(adapter: bool, toy_folder, rows, capfd) -> None:
    average = json.dumps([{"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.5}}])
    settings = {"model__optimizer": "AdamW", "model__optimizer__lr": 1e-2, "model__lr_scheduler": "constant"}
    common = toy_arguments(toy_folder, rows, trainer__max_steps=None, **settings)
    common += [f"--model.adapter={lora(0.0)}"] if adapter else []
    fit = [*common, f"--trainer.callbacks={average}"]
    run("fit", [*fit, "--trainer.max_steps=4"])
    run("fit", [*fit, "--trainer.max_steps=7", "--ckpt_path=last"])
    run("fit", [*fit, "--trainer.max_steps=7", "--trainer.default_root_dir=whole"])
    resumed, whole = stored(FOLDER / "last.ckpt"), stored("whole" / FOLDER / "last.ckpt")
    for part in ("state_dict", "current_model_state"):
        assert resumed[part].keys() == whole[part].keys()
        assert all(torch.equal(value, resumed[part][name]) for name, value in whole[part].items())
        assert not adapter or all("lora_" in name for name in whole[part]), "the frozen base is left out"
    assert any(not torch.equal(v, whole["current_model_state"][k]) for k, v in whole["state_dict"].items())
    with pytest.warns(UserWarning, match="goes on from the weights that were trained on"):
        run("fit", [*common, "--trainer.max_steps=8", "--ckpt_path=last"])


def python_fit(toy_folder: Path, data: SFTDataModule, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = Trainer(enable_checkpointing=False, **quiet, **settings)
    trainer.fit(SFTModule(str(toy_folder)), data)
    return trainer


def test_a_fit_that_never_validates_does_so_at_its_end(toy_folder, rows) -> None:
    """As where a thousand rows make more batches than max_steps."""
    data = SFTDataModule(str(rows), val_split=4, batch_size=4)
    assert "val/nll" in python_fit(toy_folder, data, max_steps=3).callback_metrics
    off = [FinalValidation(enabled=False)]
    late = {"max_epochs": 2, "check_val_every_n_epoch": 5}
    assert "val/nll" in python_fit(toy_folder, data, **late).callback_metrics
    assert "val/nll" not in python_fit(toy_folder, data, max_steps=3, callbacks=off).callback_metrics
    assert "val/nll" not in python_fit(toy_folder, data, limit_val_batches=0, max_steps=3).callback_metrics


@pytest.mark.parametrize("settings", [{"limit_train_batches": 0}, {"gradient_clip_val": -1.0}])
def test_a_fit_of_nothing_is_refused(settings: dict[str, float], toy_folder, rows) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        python_fit(toy_folder, SFTDataModule(str(rows), batch_size=4), max_steps=2, **settings)
