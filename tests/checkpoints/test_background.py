"""Checkpoints written behind training: what they hold, how much memory, and what a failed or killed write costs."""

import json
import os
import shutil
import signal
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import LastCheckpoint
from lightning_sft.checkpoints import io
from lightning_sft.checkpoints.background import BackgroundWriter
from lightning_sft.checkpoints.io import SafeCheckpointIO
from lightning_sft.checkpoints.read import read_checkpoint
from tests.fitting import trainer
from tests.running import run, toy_arguments, write_rows


def step_of(path: Path) -> int:
    return int(read_checkpoint(path)["global_step"])


def fit(model: Path, folder: Path, steps: int = 6, more: tuple[object, ...] = (), **last: object) -> LastCheckpoint:
    """A fit that is not validated, so that checkpoints are due to their rhythm alone."""
    torch.manual_seed(0)
    keep = LastCheckpoint(**{"every_n_train_steps": 1, "dirpath": str(folder), **last})
    data = SFTDataModule(str(write_rows(folder.parent / "rows.jsonl", 40)), batch_size=2, cache_dir=False)
    run = trainer(max_steps=steps, callbacks=[keep, *more], default_root_dir=folder.parent, enable_checkpointing=True)
    run.fit(SFTModule(str(model)), data)
    return keep


def test_a_snapshot_is_what_it_was_of(tmp_path: Path) -> None:
    big = torch.arange(12.0)
    tied = torch.nn.Parameter(torch.ones(5))
    content = {
        "state_dict": OrderedDict(
            a=tied, b=tied, view=big[3:9].view(2, 3).T, empty=torch.empty(0), other=torch.empty(0)
        ),
        "list": [(1, big), None, {"x": torch.tensor(3, dtype=torch.int64)}],
        "text": "é",
    }
    writer, written = BackgroundWriter(), []
    writer.start(lambda checkpoint, _: written.append(checkpoint), content, tmp_path / "a")
    writer.finish()
    with torch.no_grad():
        big += 1
        tied += 1
    (copy,) = written
    assert list(copy) == list(content)
    assert type(copy["state_dict"]) is OrderedDict
    assert copy["state_dict"]["view"].tolist() == [[3, 6], [4, 7], [5, 8]]
    assert copy["list"][0][1].tolist() == list(range(12))
    assert copy["state_dict"]["a"].data_ptr() == copy["state_dict"]["b"].data_ptr(), "tied weights stay one"
    assert copy["state_dict"]["view"].untyped_storage().data_ptr() == copy["list"][0][1].data_ptr()
    assert int(copy["list"][2]["x"]) == 3
    writer.start(lambda checkpoint, _: written.append(checkpoint), content, tmp_path / "a")
    writer.finish()
    assert written[1]["list"][0][1].data_ptr() == copy["list"][0][1].data_ptr(), "the same memory"
    assert written[1]["list"][0][1].tolist() == list(range(1, 13))
    writer.close()


def test_the_last_one_is_of_the_last_step_and_equals_one_that_was_waited_for(toy_folder: Path, tmp_path: Path) -> None:
    found = []
    for name, background in (("behind", True), ("waited", False)):
        folder = tmp_path / name / "checkpoints"
        folder.parent.mkdir()
        fit(toy_folder, folder, background=background)
        assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
        assert step_of(folder / "last.ckpt") == 6
        found.append(read_checkpoint(folder / "last.ckpt"))
    weights, states = zip(*((c["state_dict"], c["optimizer_states"][0]["state"]) for c in found), strict=True)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert all(torch.equal(state["exp_avg"], states[1][i]["exp_avg"]) for i, state in states[0].items())


class Look:
    """Writes that take as long as a test says; notes which step each is of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, holds: int) -> None:
        self.steps: list[int] = []
        self.go_on = threading.Event()
        write = io._write

        def slow(checkpoint, place) -> None:
            self.steps.append(checkpoint["global_step"])
            if checkpoint["global_step"] == holds:
                assert self.go_on.wait(60)
            write(checkpoint, place)

        monkeypatch.setattr(io, "_write", slow)


def test_a_slow_disk_is_not_waited_for_and_the_next_free_step_is_written(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch, holds=2)
    begun = LastCheckpoint.on_train_batch_end

    def note(self, run, *args) -> None:
        if run.global_step == 6 and not look.go_on.is_set():  # steps 3 to 6 were trained while 2 is being written
            look.go_on.set()
            io.writes_behind(run).background._write.exception()
        begun(self, run, *args)

    monkeypatch.setattr(LastCheckpoint, "on_train_batch_end", note)
    fit(toy_folder, tmp_path / "checkpoints", steps=9, every_n_train_steps=2)
    assert look.steps[0] == 2
    assert look.steps[1] == 6
    assert look.steps[-1] == 9
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 9


def test_a_late_write_is_made_up_for_between_two_rhythms(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(monkeypatch, holds=3)
    begun = LastCheckpoint.on_train_batch_end

    def note(self, run, *args) -> None:
        begun(self, run, *args)
        if run.global_step == 6 and not look.go_on.is_set():
            look.go_on.set()
            io.writes_behind(run).background._write.exception()

    monkeypatch.setattr(LastCheckpoint, "on_train_batch_end", note)
    fit(toy_folder, tmp_path / "checkpoints", steps=8, every_n_train_steps=3)
    assert look.steps == [3, 7, 8]


def wait_for_each_write(monkeypatch: pytest.MonkeyPatch, ended: list[int]) -> None:
    """Let each step's write end before the next step, and note the steps that end."""
    begun = LastCheckpoint.on_train_batch_end

    def wait(self, run, *args) -> None:
        begun(self, run, *args)
        ended.append(run.global_step)
        if (write := io.writes_behind(run).background._write) is not None:
            write.exception()

    monkeypatch.setattr(LastCheckpoint, "on_train_batch_end", wait)


@pytest.mark.parametrize("trouble", ["full", "gone"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's writer is closed half-way
def test_a_write_that_fails_ends_the_run_at_the_next_step_and_the_old_one_stays(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    folder, kept = tmp_path / "checkpoints", tmp_path / "kept"
    beside, ended = io.beside, list[int]()

    def trouble_at_four(place: Path) -> Path:
        partial = beside(place)
        if place.exists() and step_of(place) == 3:
            if trouble == "full":
                partial.symlink_to("/dev/full")
            else:
                folder.rename(kept)
        return partial

    monkeypatch.setattr(io, "beside", trouble_at_four)
    wait_for_each_write(monkeypatch, ended)
    said = "No space left on device" if trouble == "full" else "No such file or directory"
    with pytest.raises(OSError, match=rf"{said}: '.*last.ckpt'"):
        fit(toy_folder, folder, steps=9)
    assert ended == [1, 2, 3, 4], "it failed behind step 4, and step 5 said so"
    place = (kept if trouble == "gone" else folder) / "last.ckpt"
    assert step_of(place) == 3
    assert list(place.parent.iterdir()) == [place]


@pytest.mark.parametrize("trouble", ["full", "gone"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_command_line_says_in_one_line_what_became_of_a_write(
    toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    folder, beside = tmp_path / "checkpoints", io.beside

    def trouble_at_three(place: Path) -> Path:
        partial = beside(place)
        if place.exists() and step_of(place) >= 3:
            if trouble == "full":
                partial.symlink_to("/dev/full")
            else:
                folder.rename(tmp_path / "moved")
        return partial

    monkeypatch.setattr(io, "beside", trouble_at_three)
    wait_for_each_write(monkeypatch, [])
    last = {"class_path": "LastCheckpoint", "init_args": {"every_n_train_steps": 1, "dirpath": str(folder)}}
    words = toy_arguments(
        toy_folder, write_rows(tmp_path / "rows.jsonl", 40), data__batch_size=2, trainer__max_steps=12
    )
    with pytest.raises(SystemExit) as stop:
        run("fit", [*words, "--trainer.limit_val_batches=0", f"--trainer.callbacks={json.dumps([last])}"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    said = "No space left on device" if trouble == "full" else "--ckpt_path THERE/last.ckpt"
    assert f"'{folder}/last.ckpt'" in error
    assert said in error
    assert step_of((tmp_path / "moved" if trouble == "gone" else folder) / "last.ckpt") >= 3


def test_a_kill_in_the_middle_of_a_write_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    old, new = ({"pytorch-lightning_version": "2.6", "n": n, "a": torch.ones(100_000)} for n in (1, 2))
    SafeCheckpointIO().save_checkpoint(old, path)
    child = os.fork()
    if child == 0:
        real = torch.save

        def half(content: object, file) -> None:
            real(content, file)
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half
        writing = SafeCheckpointIO()
        with writing.behind():
            writing.save_checkpoint(new, path)
        writing.teardown()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert read_checkpoint(path)["n"] == 1


def test_an_older_one_never_comes_after_a_newer_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look, path = Look(monkeypatch, holds=1), tmp_path / "last.ckpt"
    writing = SafeCheckpointIO()
    content = {"pytorch-lightning_version": "2.6", "state_dict": {}}
    with writing.behind():
        writing.save_checkpoint({**content, "global_step": 1}, path)
    writing.save_checkpoint({**content, "global_step": 9}, tmp_path / "another.ckpt")  # is not waited for
    threading.Timer(0.2, look.go_on.set).start()
    writing.save_checkpoint({**content, "global_step": 2}, path)
    assert step_of(path) == 2
    writing.teardown()
    shutil.rmtree(tmp_path)
