"""The cache when its folder is damaged, full or closed, and when processes compete for it or are killed."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest

from tests.data import kept as shared
from tests.data.helpers import write_jsonl
from tests.data.kept import built, chat, entries, facts, leftovers
from tests.running import toy_arguments

#: seconds for a process that imports the package, on a machine that is busy; less than a test may take
WAIT = 250
root, untouchable = shared.root, shared.untouchable


@pytest.fixture
def rows(tmp_path):
    return str(write_jsonl(tmp_path / "rows.jsonl", [chat(i) for i in range(12)]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "ids cut": lambda folder: cut(folder / "ids.npy"),
    "ids changed": lambda folder: flip(folder / "ids.npy"),
    "examples changed": lambda folder: flip(folder / "examples.npy"),
    "lengths missing": lambda folder: (folder / "lengths.npy").unlink(),
    "ids empty": lambda folder: (folder / "ids.npy").write_bytes(b""),
    "meta cut": lambda folder: cut(folder / "meta.json"),
    "meta changed": lambda folder: flip(folder / "meta.json"),
    "meta missing": lambda folder: (folder / "meta.json").unlink(),
    "meta of another kind": lambda folder: (folder / "meta.json").write_text("[]"),
    "meta not text": lambda folder: (folder / "meta.json").write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_named_and_made_again(rows, root, damage):
    before = facts(built("test", test=rows, cache_dir=str(root)))
    (folder,) = root.glob("test-*")
    DAMAGE[damage](folder)
    with pytest.warns(UserWarning, match=rf"{folder.name} are damaged .*made again"):
        assert facts(built("test", test=rows, cache_dir=str(root))) == before
    assert facts(built("test", test=rows, cache_dir=str(root))) == before  # without a warning
    assert entries(root) == [folder.name]


def test_every_flipped_byte_of_meta_is_found(rows, root):
    built(train=rows, cache_dir=str(root))
    (meta,) = root.glob("train-*/meta.json")
    whole = meta.read_bytes()
    for i in range(0, len(whole), 37):
        meta.write_bytes(whole[:i] + bytes([whole[i] ^ 2]) + whole[i + 1 :])
        with pytest.warns(UserWarning, match="damaged"):
            built(train=rows, cache_dir=str(root))


def test_a_file_in_the_place_of_the_folder(rows, root):
    root.write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be used .*writable folder.*cache_dir: false") as seen:
        data = built(train=rows, val_split=3, cache_dir=str(root))
    assert facts(data) == facts(built(train=rows, val_split=3, cache_dir=False))
    assert len(seen) == 1
    assert root.read_text() == "in the way"


def test_a_read_only_folder(rows, root, monkeypatch):
    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    with pytest.warns(UserWarning, match=r"Read-only file system.*cache_dir: false") as seen:
        data = built(train=rows, val_split=3, cache_dir=str(root))
    assert facts(data) == facts(built(train=rows, val_split=3, cache_dir=False))
    assert len(seen) == 1


def test_a_read_only_folder_is_still_read(rows, root, monkeypatch, request):
    before = facts(built(train=rows, cache_dir=str(root)))

    def read_only(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    monkeypatch.setattr(Path, "mkdir", read_only)
    monkeypatch.setattr(os, "utime", read_only)
    request.getfixturevalue("untouchable")
    assert facts(built(train=rows, cache_dir=str(root))) == before


@pytest.mark.parametrize("full_at", ["ids", "keys", "meta"])
def test_a_disk_that_becomes_full_keeps_nothing(rows, root, monkeypatch, full_at):
    save, write = np.save, Path.write_text

    def full(path, *args, **kwargs):
        if path.stem != full_at:
            return (write if path.suffix == ".json" else save)(path, *args, **kwargs)
        path.write_bytes(b"a beginning")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        patch.setattr(Path, "write_text", full)
        with pytest.warns(UserWarning, match="No space left") as seen:
            data = built(train=rows, val_split=3, cache_dir=str(root))
    assert len(seen) == 1
    assert facts(data) == facts(built(train=rows, val_split=3, cache_dir=False))
    assert entries(root) == leftovers(root) == []
    built(train=rows, val_split=3, cache_dir=str(root))  # there is space again
    assert len(entries(root)) == 2


def test_a_folder_cleared_during_a_run(rows, root):
    data = built("test", test=rows, cache_dir=str(root))
    expected = facts(built("test", test=rows, cache_dir=False))
    for path in [*root.glob("*/*"), *root.glob(".*"), *root.glob("test-*"), root]:
        path.rmdir() if path.is_dir() else path.unlink()
    assert facts(data) == expected


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.data.storage.slow_build", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(what, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_of_two_processes_one_makes_the_rows(rows, root, tmp_path):
    log = tmp_path / "log"
    both = [start(rows, root, log, 0.2), start(rows, root, log, 0.2)]
    found = [process.communicate(timeout=WAIT) for process in both]
    assert [process.returncode for process in both] == [0, 0], found
    expected = facts(built(train=rows, cache_dir=False))
    assert [out.strip() for out, _ in found] == [expected, expected]
    assert len(log.read_text().splitlines()) == 1
    assert len(entries(root)) == 1


def test_a_process_killed_while_it_writes(rows, root, tmp_path):
    killed = start(rows, root, tmp_path / "log", "kill-while-writing")
    killed.communicate(timeout=WAIT)
    assert killed.returncode == -signal.SIGKILL
    assert entries(root) == []
    assert len(leftovers(root)) == 1
    assert facts(built(train=rows, cache_dir=str(root))) == facts(built(train=rows, cache_dir=False))
    assert leftovers(root) == []
    assert len(entries(root)) == 1


def test_what_others_left_is_removed_and_what_they_write_is_not(rows, root):
    root.mkdir()
    for key in ("train-dead", "train-alive"):
        (root / f".{key}.123.partial").mkdir()
        (root / f".{key}.123.partial" / "ids.npy").write_bytes(b"a beginning")
    with filelock.FileLock(root / ".train-alive.lock"):
        built(train=rows, cache_dir=str(root))
    assert leftovers(root) == [".train-alive.123.partial"]


def test_a_killed_process_takes_its_children_and_its_lock_along(rows, root, tmp_path):
    log = tmp_path / "log"
    maker = start(rows, root, log, 30, 2)
    try:
        wait_for(log.exists)
        children = Path(f"/proc/{maker.pid}/task/{maker.pid}/children")
        wait_for(lambda: len(children.read_text().split()) >= 2)
        pids = [int(pid) for pid in children.read_text().split()]
    finally:
        maker.kill()
        maker.communicate(timeout=WAIT)
    assert facts(built(train=rows, cache_dir=str(root))) == facts(built(train=rows, cache_dir=False))
    wait_for(lambda: not any(Path(f"/proc/{pid}/fd").is_dir() and running(pid) for pid in pids), 20)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.ranks
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("ddp_fork", marks=pytest.mark.slow)])
def test_both_ranks_end_with_the_message_about_a_bad_row(toy_folder, root, tmp_path, strategy):
    path = write_jsonl(tmp_path / "rows.jsonl", [*(chat(i) for i in range(8)), {"messages": []}])
    arguments = toy_arguments(toy_folder, path, data__cache_dir=root, data__val_split=None, trainer__devices=2)
    command = [sys.executable, "-m", "lightning_sft", "fit", *arguments, f"--trainer.strategy={strategy}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, env=environment, check=False)
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"error: {path}:9: " in done.stderr
    assert "Traceback" not in done.stderr
    assert entries(root) == []
