"""Packed runs through the command line: killed and continued, validated, and refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.running import run, run_folder, scalars, toy_arguments, write_rows
from tests.toys import save_toy

ROWS = 60
CALLBACKS = [{"class_path": "lightning_sft.callbacks.LastCheckpoint", "init_args": {"every_n_train_steps": 2}}]


def arguments(model: Path, rows: Path, ranks: int) -> list[str]:
    settings = {
        "data__val_split": None,
        "data__order": "packed",
        "data__max_length": 128,
        "data__batch_size": 2 // ranks,
        "data__num_workers": 2,
        "trainer__max_epochs": 1,
        "trainer__max_steps": -1,
        "trainer__devices": ranks,
        "trainer__strategy": "ddp_fork" if ranks > 1 else "auto",
    }
    return [*toy_arguments(model, rows, **settings), f"--trainer.callbacks={json.dumps(CALLBACKS)}"]


def start(command: list[str], record: Path, seconds: float) -> subprocess.Popen[bytes]:
    """Start a run of which each step is written down, in a session of its own."""
    record.mkdir()
    script = str(Path(__file__).with_name("recorded_fit.py"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"RECORD": str(record), "STEP_SECONDS": str(seconds)}
    return subprocess.Popen(
        [sys.executable, script, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def seen(record: Path, before: float = float("inf")) -> list[int]:
    """Rows of all ranks, in steps below ``before``."""
    lines = [line.split(":") for path in record.glob("rank*.txt") for line in path.read_text().splitlines()]
    return [int(row) for step, rows in lines if int(step) < before for row in rows.split()]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.ranks)])
def test_killed_packed_run_sees_each_row_once(toy_folder: Path, tmp_path: Path, ranks: int) -> None:
    command = arguments(toy_folder, write_rows(tmp_path / "rows.jsonl", ROWS, longest=17), ranks)
    killed, resumed = tmp_path / "killed", tmp_path / "resumed"
    process = start(command, killed, seconds=0.3)
    checkpoint = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read().decode()[-2000:] if process.stderr else ""
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    killed_at = torch.load(checkpoint, weights_only=True)["global_step"]
    assert killed_at > 0
    assert 0 < len(seen(killed, before=killed_at)) < ROWS

    process = start([*command, "--ckpt_path=last"], resumed, seconds=0)
    errors = process.communicate(timeout=240)[1].decode()
    assert process.returncode == 0, errors[-2000:]
    assert f"Resumed at step {killed_at}" in errors
    assert sorted(seen(killed, before=killed_at) + seen(resumed)) == list(range(ROWS))
    assert len(list(resumed.glob("rank*.txt"))) == ranks
    steps = torch.load(run_folder() / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert steps > killed_at + 2


def test_losses_do_not_depend_on_the_layout(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    readings = {}
    layouts = {"padded": {"data__layout": "padded"}, "flat": {}, "packed": {"data__order": "packed"}}
    for name, layout in layouts.items():
        root = tmp_path / name
        settings = {**layout, "data__max_length": 256, "trainer__default_root_dir": root}
        first = {"trainer__num_sanity_val_steps": -1, "trainer__max_steps": 1}
        run("fit", toy_arguments(toy_folder, rows, **settings, **first))
        readings[name] = scalars(run_folder(root / "lightning_logs"))
    for key in ("val/nll", "val/token_accuracy"):
        values = [readings[name][key][0][1] for name in layouts]  # before the first step
        assert values == pytest.approx([values[0]] * 3, rel=1e-6)
    for key in ("train/nll", "train/grad_norm", "val/nll"):  # flat batches hold the rows of padded ones
        values = [readings[name][key][-1][1] for name in ("padded", "flat")]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    padding = [readings[name]["perf/padding_share"][0][1] for name in layouts]
    assert padding[0] > 0.1
    assert padding[1:] == [0, 0]


def test_a_model_that_mixes_documents_gets_padded_rows_and_the_log_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, rows = save_toy(tmp_path / "opt", "opt"), write_rows(tmp_path / "rows.jsonl")
    run("fit", toy_arguments(model, rows))
    assert "Batches are padded: OPTForCausalLM does not keep documents of one row apart" in capsys.readouterr().out
    assert scalars(run_folder())["perf/padding_share"][0][1] > 0
    with pytest.raises(SystemExit) as stop:
        run("fit", toy_arguments(model, rows, data__layout="flat"))
    assert stop.value.code == 2


def test_opt_is_refused_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_toy(tmp_path / "opt", "opt")
    settings = {"data__order": "packed", "data__max_length": 256}
    with pytest.raises(SystemExit) as stop:
        run("fit", toy_arguments(model, write_rows(tmp_path / "rows.jsonl"), **settings))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "OPTForCausalLM (model_type 'opt', attention 'sdpa') cannot train on packed rows" in message
    assert "Set data.order: grouped and data.layout: padded" in message
