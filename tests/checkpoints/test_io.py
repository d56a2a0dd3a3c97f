"""Every writer replaces a file only by a whole one: after a kill, on a full disk, with shards."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from torch.distributed.checkpoint import FileSystemWriter, save

from lightning_sft import files
from lightning_sft.checkpoints import io
from lightning_sft.checkpoints.io import SafeCheckpointIO, write_safely
from lightning_sft.checkpoints.read import is_whole, read_checkpoint
from lightning_sft.checkpoints.runs import find_checkpoint
from lightning_sft.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")

OLD = {"pytorch-lightning_version": "2.6", "state_dict": {"a": torch.zeros(1000)}}
NEW = {"pytorch-lightning_version": "2.6", "state_dict": {"a": torch.ones(100_000)}}


def value(path: Path) -> float:
    return float(read_checkpoint(path)["state_dict"]["a"][0])


def die_at(step: str) -> None:
    """Kill this process without warning at a step of writing."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if step == "half written":
        real = torch.save

        def half(content: object, file) -> None:
            real(content, file)
            file.truncate(file.tell() // 2)
            file.flush()
            die()

        torch.save = half
    elif step == "before the sync":
        io.sync_all = die
    else:  # before the rename
        Path.replace = die


@pytest.mark.parametrize("step", ["half written", "before the sync", "before the rename"])
def test_a_kill_leaves_the_old_checkpoint_whole(step: str, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(OLD, path)
    child = os.fork()
    if child == 0:
        die_at(step)
        SafeCheckpointIO().save_checkpoint(NEW, path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert value(path) == 0
    assert len(list(tmp_path.iterdir())) == 2, "the killed process could not clear away its part"
    files.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    SafeCheckpointIO().save_checkpoint(NEW, path)
    assert value(path) == 1


def full_disk(path: Path) -> Path:
    """A name beside a path that leads to a device on which nothing fits."""
    name = path.with_name(f".{path.name}.1.2.partial")
    name.symlink_to("/dev/full")
    return name


WRITERS: dict[str, Callable[[Path], None]] = {
    "checkpoint": lambda path: SafeCheckpointIO().save_checkpoint(NEW, path),
    "text": lambda path: files.write_text(path, "new" * 10_000),
    "bytes": lambda path: files.write_bytes(path, b"new" * 10_000),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's writer is closed half-way
def test_a_full_disk_leaves_the_old_file_whole(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept"
    path.write_bytes(b"old")
    monkeypatch.setattr(files, "beside", full_disk)
    monkeypatch.setattr(io, "beside", full_disk)
    with pytest.raises(OSError, match="No space left on device") as raised:
        WRITERS[writer](path)
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "nothing is left behind"


def test_a_full_disk_leaves_no_part_of_a_folder(tmp_path: Path) -> None:
    def fill() -> None:
        with files.new_folder(tmp_path / "folder") as partial:
            (partial / "whole").write_text("whole")
            (partial / "full").symlink_to("/dev/full")
            (partial / "full").write_text("x" * 10_000)

    with pytest.raises(OSError, match=r"No space left on device: '.*/folder'"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_nobody_replaces_keeps_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/log'"):
        files.append_text(tmp_path / "log", "line\n")


# ---------------------------------------------------------------------- folders of shards


def shards(folder: Path, content: float) -> Path:
    """A folder as FSDP2 writes it, with one rank."""
    save({"state_dict": {"a": torch.full((1000,), content)}}, storage_writer=FileSystemWriter(folder), no_dist=True)
    torch.save({"pytorch-lightning_version": "2.6", "number": content}, folder / "meta.pt")
    return folder


def test_a_folder_of_shards_is_replaced_whole(tmp_path: Path) -> None:
    place = shards(tmp_path / "last.ckpt", 0.0)
    io._take_place(shards(tmp_path / "new", 1.0), place)
    assert read_checkpoint(place)["number"] == 1
    assert list(tmp_path.iterdir()) == [place]
    SafeCheckpointIO().save_checkpoint(NEW, place)  # a file where a folder was
    assert value(place) == 1
    io._take_place(shards(tmp_path / "new", 2.0), place)  # and the other way round
    assert read_checkpoint(place)["number"] == 2


def test_a_kill_between_two_folders_leaves_the_old_one_to_be_found(tmp_path: Path) -> None:
    run = tmp_path / "version_0" / "checkpoints"
    place = shards(run / "last.ckpt", 0.0)
    child = os.fork()
    if child == 0:
        die_at("before the rename")
        io._take_place(shards(run / "new", 1.0), place)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not place.exists()
    found = find_checkpoint("last", [tmp_path])
    assert read_checkpoint(found)["number"] == 0


@pytest.mark.parametrize("damage", ["cut", "gone", "index"])
def test_a_damaged_folder_of_shards_is_named(damage: str, tmp_path: Path) -> None:
    folder = shards(tmp_path / "last.ckpt", 0.0)
    assert is_whole(folder)
    (shard,) = folder.glob("*.distcp")
    if damage == "cut":
        os.truncate(shard, 100)
    elif damage == "gone":
        shard.unlink()
    else:
        os.truncate(folder / ".metadata", 50)
    with pytest.raises(UserError, match=r"last.ckpt.*(is not whole|cannot be read)"):
        read_checkpoint(folder)


# ---------------------------------------------------------------------- trainers


def test_a_trainer_writes_safely_unless_the_user_chose_how() -> None:
    def trainer(*plugins: object) -> Trainer:
        made = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, plugins=list(plugins))
        write_safely(made)
        return made

    class Mine(TorchCheckpointIO):
        pass

    assert isinstance(trainer().strategy.checkpoint_io, SafeCheckpointIO)
    assert isinstance(trainer(TorchCheckpointIO()).strategy.checkpoint_io, SafeCheckpointIO)
    wrapper = trainer(AsyncCheckpointIO()).strategy.checkpoint_io
    assert isinstance(wrapper, AsyncCheckpointIO)
    assert isinstance(wrapper.checkpoint_io, SafeCheckpointIO)
    assert isinstance(trainer(Mine()).strategy.checkpoint_io, Mine)


def test_loading_says_that_a_checkpoint_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(NEW, path)
    os.truncate(path, 1000)
    with pytest.raises(UserError, match="cut off"):
        SafeCheckpointIO().load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        SafeCheckpointIO().load_checkpoint(tmp_path / "none.ckpt")
