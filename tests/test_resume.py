"""Resume: a killed run, continued, ends where the uninterrupted run ends, to the last bit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_sft import SFTModule
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
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"filename": "last", "every_n_train_steps": 3, "enable_version_counter": False},
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
