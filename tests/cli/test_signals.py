"""Signals: the step is finished, last.ckpt is written, the exit status is the signal's, one line says where."""

import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_sft.cli.entry import _again, main
from lightning_sft.cli.lightning_cli import Parser
from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.models import generation
from lightning_sft.module import SFTModule
from lightning_sft.sweep.trial import TrialRunner
from lightning_sft.training.signals import WATCH
from tests.running import toy_arguments, write_rows

LAST = Path("lightning_logs/version_0/checkpoints/last.ckpt")
SLURM = {
    "SLURM_JOB_ID": "123",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NODELIST": "localhost",
}
SETTINGS = {"trainer__max_steps": 8, "trainer__num_sanity_val_steps": 0, "data__val_batch_size": 1}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")  # 20 to train on: 5 steps an epoch


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let this process send itself a signal when a method is called for the n-th time."""

    def arrange(owner: Any, name: str, call: int, signum: int = signal.SIGTERM, times: int = 1) -> None:
        original, calls = getattr(owner, name), 0

        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                for _ in range(times):
                    os.kill(os.getpid(), signum)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, called)

    return arrange


def fit(model: Path, rows: Path, *more: str, **settings: Any) -> int:
    """Run a fit, and return its exit status."""
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        main(["fit", *toy_arguments(model, rows, **{**SETTINGS, **settings}), *more])
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        assert (WATCH.requested, WATCH.deferring) == (None, False)
    return 0


def stored(path: Path = LAST) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_step_is_finished_and_kept(signum: int, status: int, toy_folder, rows, send, capfd) -> None:
    send(SFTModule, "training_step", 3, signum)
    assert fit(toy_folder, rows, "--trainer.accumulate_grad_batches=2") == status
    assert stored()["global_step"] == 2, "the third of five micro-batches: the second step goes on to its end"
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Stopped")]
    name, again = signal.Signals(signum).name, f"lightning fit {LAST.parents[1]}"
    assert said == [f"Stopped by {name} after step 2; {LAST} is written; go on with {again}."]


def test_a_stopped_run_ends_like_the_uninterrupted_one(toy_folder, rows, tmp_path, send, monkeypatch) -> None:
    """Stopped in a training step, in the first validation and in an answer, it ends with the same bits and counters."""
    for place in ("whole", "stopped"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert fit(toy_folder, rows) == 0
    whole = stored()
    monkeypatch.chdir(tmp_path / "stopped")
    send(SFTModule, "training_step", 2)
    assert fit(toy_folder, rows) == 143
    again = "--ckpt_path=last"
    send(SFTModule, "validation_step", 2)
    assert fit(toy_folder, rows, again) == 143
    assert stored()["global_step"] == 5
    send(generation, "stop_in_generation", 3)
    assert fit(toy_folder, rows, again) == 143
    assert fit(toy_folder, rows, again) == 0
    stopped = stored()
    assert stopped["global_step"] == whole["global_step"]
    assert stopped["loops"] == whole["loops"]
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, stopped["state_dict"][name]), name


def test_a_second_signal_ends_at_once(toy_folder, rows, send, monkeypatch, capfd) -> None:
    class AtOnce(BaseException):
        """In the place of the process's end."""

    def end(status: int) -> None:
        raise AtOnce(status)

    monkeypatch.setattr(os, "_exit", end)
    send(SFTModule, "training_step", 2, times=2)
    with pytest.raises(AtOnce, match="143"):
        fit(toy_folder, rows)
    assert "SIGTERM again: ended at once" in capfd.readouterr().err


def test_nothing_to_finish(toy_folder, rows, send, monkeypatch, tmp_path, capfd) -> None:
    """While rows are tokenised, and in verbs that do not train."""
    monkeypatch.setenv("LIGHTNING_SFT_DATA_CACHE", str(tmp_path / "fresh"))
    send(Encoder, "__call__", 5)
    assert fit(toy_folder, rows) == 143
    assert not list(Path().glob("lightning_logs/*"))
    err = capfd.readouterr().err
    assert "Stopped by SIGTERM where no step was under way; there is nothing new to save. Begin again with " in err
    assert f"Begin again with {shlex.join(['lightning', 'fit', *toy_arguments(toy_folder, rows, **SETTINGS)])}" in err
    assert fit(toy_folder, rows) == 0
    send(SFTModule, "validation_step", 1, signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        main(["validate", *toy_arguments(toy_folder, rows), "--ckpt_path=last"])
    assert end.value.code == 130
    assert "Stopped by SIGINT.\n" in capfd.readouterr().err, "nothing is said of saving where nothing is trained"


def test_a_stopped_comparison_says_how_much_of_it_is_done(toy_folder, rows, send, capfd) -> None:
    """In one line with the command that goes on, in place of that of the run under way."""
    more = ["--objectives=NLL,PowerFamily(1)", "--points=0", "--replicates=2"]
    command = ["compare", *toy_arguments(toy_folder, rows, trainer__max_steps=2), *more]
    send(SFTModule, "training_step", 4, signal.SIGINT)  # in the second run
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 130
    said = [line for line in capfd.readouterr().err.splitlines() if "Stopped" in line or "go on" in line.lower()]
    assert said == [f"Stopped by SIGINT: 1 of 4 runs of compare done. Go on with {shlex.join(['lightning', *command])}"]
    assert WATCH.speaks


def test_a_stopped_search_without_a_storage_goes_on_from_its_trials(toy_folder, rows, send, capfd) -> None:
    """They lie in the run's folder; the same command finds them from the folder of its own."""
    finder = [
        "--trainer.callbacks+=CriticalLearningRateFinder", "--trainer.callbacks.criterion=val_nll",
        "--trainer.callbacks.target=1.0", "--trainer.callbacks.steps=2", "--trainer.callbacks.points=4",
        "--trainer.callbacks.resolution=5.0",
    ]  # fmt: skip
    command = [
        "sweep",
        "critical",
        *toy_arguments(toy_folder, rows, **{**SETTINGS, "trainer__logger": "true"}),
        *finder,
    ]
    send(TrialRunner, "run", 3)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 143
    err = capfd.readouterr().err
    assert "Stopped by SIGTERM" in err
    assert f"Go on with {shlex.join(['lightning', *command])}" in err
    main(command)
    assert "continues with 2 finished trials" in capfd.readouterr().err


def test_before_a_sweep_the_run_is_kept(toy_folder, rows, send, capfd) -> None:
    sweep = ["--trainer.callbacks+=LearningRateSweep", "--trainer.callbacks.at_step=2", "--trainer.callbacks.steps=4"]
    send(TrialRunner, "_prepare", 1)
    assert fit(toy_folder, rows, *sweep) == 143
    said = capfd.readouterr().err
    assert "Stopped by SIGTERM in a sweep." in said
    assert "Begin again" not in said, "two steps are kept"
    (go_on,) = re.findall(r"Stopped by SIGTERM in a sweep\. Go on with lightning (.+)", said)
    assert "--ckpt_path" in go_on or "lightning_logs" in go_on
    assert stored()["global_step"] == 2
    assert fit(toy_folder, rows, *sweep, "--ckpt_path=last") == 0
    assert stored()["global_step"] == 8


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A simulated SLURM job, whose scontrol writes down what it is asked."""
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("sys.argv", ["lightning", "fit", "the same command"])
    return tmp_path / "asked"


def test_a_question_has_nothing_to_save(toy_folder, rows, send, capfd) -> None:
    send(Parser, "dump", 1)
    assert fit(toy_folder, rows, "--print_config") == 143
    said = capfd.readouterr().err
    assert "SIGTERM" in said
    assert "save" not in said


def test_a_requeued_job_goes_on_in_its_own_folder(toy_folder, rows, slurm, send, monkeypatch, capfd) -> None:
    send(SFTModule, "training_step", 7, signal.SIGUSR1)
    assert fit(toy_folder, rows) == 128 + signal.SIGUSR1
    assert slurm.read_text() == "requeue 123\n"
    assert "SLURM job 123 is requeued" in capfd.readouterr().err
    assert sorted(path.name for path in LAST.parent.iterdir()) == ["best.ckpt", "last.ckpt"]
    best = stored(LAST.with_name("best.ckpt"))
    monkeypatch.setenv("SLURM_JOB_ID", "124")
    assert fit(toy_folder, rows, trainer__max_steps=2) == 0
    assert Path("lightning_logs/version_1").is_dir(), "another job starts anew"
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    assert fit(toy_folder, rows) == 0
    assert not Path("lightning_logs/version_2").exists()
    assert "Resumed at step 7" in capfd.readouterr().err
    key = next(key for key in best["callbacks"] if key.startswith("ModelCheckpoint"))
    kept = stored()["callbacks"][key]
    assert kept["best_model_score"] <= best["callbacks"][key]["best_model_score"]
    assert fit(toy_folder, rows, trainer__max_steps=2) == 0
    assert Path("lightning_logs/version_2").is_dir(), "the same command again in the same job is a run of its own"


def test_a_job_that_slurm_restarted_by_itself_goes_on(toy_folder, rows, slurm, send, monkeypatch, capfd) -> None:
    send(SFTModule, "training_step", 2)
    assert fit(toy_folder, rows) == 143
    assert not slurm.exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert fit(toy_folder, rows) == 0
    assert "Resumed at step 2" in capfd.readouterr().err
    assert not Path("lightning_logs/version_1").exists()


def test_a_command_with_a_password_is_not_repeated() -> None:
    assert _again("sweep", ["worker", "--storage", "journal:a b"]) == "lightning sweep worker --storage 'journal:a b'"
    for url in ("postgresql://me:secret@host/runs", "mysql://me:x%40y@host:3306/runs"):
        for typed in (["--storage", url], [f"--storage={url}"]):
            assert _again("compare", typed) == "the same command"
    assert "me@host" in _again("compare", ["--storage=postgresql://me@host:5432/runs"])
