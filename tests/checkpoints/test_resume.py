"""Resume: a killed run, continued, ends where the uninterrupted run ends, to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_sft.callbacks import LastCheckpoint
from lightning_sft.checkpoints.io import writes_behind
from tests.distributed.fits import assert_equal, fit_arguments, fit_lines, last_checkpoint, last_path
from tests.running import run, run_folder, scalars, toy_arguments, write_rows

STEPS = 8
SETTINGS = {
    "model__config_overrides": '{"attention_dropout": 0.3}',
    "model__optimizer": "torch.optim.AdamW",
    "model__optimizer__lr": 1e-2,
    "model__lr_scheduler": "cosine",
    "data__batch_size": 2,
    "data__num_workers": 2,
    "trainer__accumulate_grad_batches": 2,
    "trainer__max_steps": STEPS,
    "trainer__max_epochs": -1,
    "trainer__check_val_every_n_epoch": "null",
    "trainer__val_check_interval": 4,
}


def arguments(model: Path, rows: Path, **settings: object) -> list[str]:
    callbacks = [
        {
            "class_path": "lightning_sft.callbacks.LastCheckpoint",
            "init_args": {"every_n_train_steps": 3},
        }
    ]
    return [*toy_arguments(model, rows, **{**SETTINGS, **settings}), f"--trainer.callbacks={json.dumps(callbacks)}"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["state_dict"]


def kill_after(command: list[str], checkpoint: Path, seconds: float = 120) -> None:
    """Start a run and kill it without warning once its first checkpoint stands."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + seconds
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read().decode()[-2000:] if process.stderr else ""
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_run_ends_like_the_uninterrupted_one(toy_folder: Path, tmp_path: Path, capfd) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 30)
    run("fit", arguments(toy_folder, rows, trainer__default_root_dir="whole", trainer__max_steps=STEPS + 1))
    # The slow callback leaves time to kill between two checkpoints.
    slow = arguments(toy_folder, rows, trainer__default_root_dir="killed", trainer__max_steps=STEPS + 1)
    kill_after(
        [sys.executable, str(Path(__file__).with_name("slow_fit.py")), *slow],
        tmp_path / "killed/lightning_logs/version_0/checkpoints/last.ckpt",
    )
    killed_at = torch.load("killed/lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 0 < killed_at < STEPS

    resumed = arguments(toy_folder, rows, trainer__default_root_dir="killed", trainer__max_steps=STEPS + 1)
    run("fit", [*resumed, "--ckpt_path=last"])

    output = capfd.readouterr()
    assert f"Resumed at step {killed_at}" in output.out + output.err
    folder = run_folder(Path("killed/lightning_logs"))
    assert folder.name == "version_0", "a resumed run continues in its own folder"
    whole, continued = weights(run_folder(Path("whole/lightning_logs"))), weights(folder)
    assert whole.keys() == continued.keys()
    for name in whole:
        assert torch.equal(whole[name], continued[name]), name
    losses, again = (dict(scalars(f)["train/loss"]) for f in (run_folder(Path("whole/lightning_logs")), folder))
    assert {step: again[step] for step in losses} == losses


def test_every_checkpoint_of_a_run_resumes_bitwise(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between steps, at an epoch's end, and where a validation falls into the middle of an optimizer step."""
    rows = write_rows(tmp_path / "rows.jsonl", 30)  # 26 to train on: 7 steps an epoch, the last one of one micro-batch
    settings = {"trainer__max_steps": STEPS + 1, "data__num_workers": 0}
    save = LastCheckpoint._save

    def save_and_copy(callback: LastCheckpoint, trainer: Trainer) -> None:
        before = callback._saved_at
        save(callback, trainer)
        if callback._saved_at != before:
            writes_behind(trainer).background.finish()
            shutil.copy("whole/lightning_logs/version_0/checkpoints/last.ckpt", f"{trainer.global_step}.ckpt")

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "_save", save_and_copy)
        run("fit", arguments(toy_folder, rows, trainer__default_root_dir="whole", **settings))
    whole = weights(run_folder(Path("whole/lightning_logs")))
    steps = sorted(int(path.stem) for path in Path().glob("*.ckpt"))
    assert steps == [2, 3, 4, 6, 7, 9]  # validations after 2, 4, 6; every third; 7 ends the epoch, 9 the run
    for step in steps[:-1]:
        folder = f"from_{step}"
        more = arguments(toy_folder, rows, trainer__default_root_dir=folder, **settings)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The dirpath has changed", UserWarning)  # copied out of its run
            run("fit", [*more, f"--ckpt_path={step}.ckpt"])
        resumed = weights(run_folder(Path(folder) / "lightning_logs"))
        for name, value in whole.items():
            assert torch.equal(value, resumed[name]), f"from step {step}: {name}"


@pytest.mark.parametrize(
    "stored",
    [pytest.param(False, id="a fresh adapter", marks=pytest.mark.slow), pytest.param(True, id="a stored adapter")],
)
@pytest.mark.filterwarnings("ignore:`loftq_config` specified")  # the export rebuilds the module from its settings
def test_adapter_run_resumes_bitwise(stored: bool, toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 30)
    settings = {"trainer__devices": 1}
    if stored:
        verb, *words = fit_arguments(toy_folder, rows, adapter=True, trainer__default_root_dir="before")
        run(verb, words)
        run("export", [f"--ckpt_path={last_path(Path('before'))}", "--output=stored"])
        settings["model__adapter_path"] = "stored"
    for verb, *words in fit_lines(toy_folder, rows, adapter=not stored, strategy="auto", **settings):
        run(verb, words)
    whole, resumed = (last_checkpoint(Path(name)) for name in ("whole", "parts"))
    assert all("lora_" in name for name in whole["state_dict"])
    assert_equal(resumed, whole)
