"""Files and folders are whole or not there; digests tell every change."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lightning_sft
from lightning_sft import files
from lightning_sft.data.storage.digests import encoding_digest
from lightning_sft.files import (
    append_text,
    cache_root,
    code_digest,
    encoded_rows_root,
    file_digest,
    finite,
    new_folder,
    replacing,
    tensor_bytes,
    to_json,
    write_bytes,
    write_text,
)
from lightning_sft.sweep.prediction.record import code_hash

PACKAGE = Path(lightning_sft.__file__).parent
CAUSES = [OSError("disk full"), RuntimeError("defect"), KeyboardInterrupt()]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_written_file_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "file.txt"
    write_text(target, "old\r\n")
    assert target.read_bytes() == b"old\r\n"
    write_bytes(target, "néw".encode())
    assert target.read_text(encoding="utf-8") == "néw"
    assert names(tmp_path) == ["deep", "deep/down", "deep/down/file.txt"]


@pytest.mark.parametrize("cause", CAUSES)
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(
    cause: BaseException, old: str | None, tmp_path: Path
) -> None:
    target = tmp_path / "file.txt"
    if old is not None:
        target.write_text(old)
    with pytest.raises(type(cause)), replacing(target) as partial:  # noqa: PT012
        partial.write_text("half of the n")
        assert target.exists() == (old is not None)
        raise cause
    assert names(tmp_path) == ([] if old is None else ["file.txt"])
    assert old is None or target.read_text() == old


def test_the_new_content_is_on_the_disk_before_it_takes_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename that is not preceded by a sync of the content may leave an empty file after a power cut."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (done.append("sync"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (done.append("replace"), replace(self, target))[1])
    write_text(tmp_path / "file.txt", "text")
    assert done == ["sync", "replace", "sync"], "the content, the rename, the folder's entry"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    with replacing(target) as one, replacing(target) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one", "the context that ended last"
    assert names(tmp_path) == ["file.txt"]


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "folder") as partial:
        (partial / "part").mkdir()
        (partial / "part" / "file").write_text("text")
        assert not (tmp_path / "deep" / "folder").exists()
    assert names(tmp_path) == ["deep", "deep/folder", "deep/folder/part", "deep/folder/part/file"]


@pytest.mark.parametrize("cause", CAUSES)
def test_a_failed_folder_leaves_nothing(cause: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(cause)), new_folder(tmp_path / "folder") as partial:  # noqa: PT012
        (partial / "file").write_text("text")
        raise cause
    assert names(tmp_path) == []


def test_a_folder_that_is_taken_meanwhile_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="folder"), new_folder(tmp_path / "folder") as partial:  # noqa: PT012
        (partial / "mine").write_text("mine")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "theirs").write_text("theirs")
    assert names(tmp_path) == ["folder", "folder/theirs"]


def test_a_folder_is_made_elsewhere_if_asked(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with new_folder(tmp_path / "kept" / "folder", place=tmp_path / "place") as partial:
        assert partial.parent == tmp_path / "place"
        (partial / "file").write_text("text")
    assert names(tmp_path) == ["kept", "kept/folder", "kept/folder/file", "place"]


def test_appending_never_touches_what_is_there(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "rows.jsonl"
    append_text(target, "öne\n")
    inode = target.stat().st_ino
    append_text(target, "two\nthree\n")
    assert target.read_text(encoding="utf-8") == "öne\ntwo\nthree\n"
    assert target.stat().st_ino == inode


def test_lines_that_processes_append_do_not_mix(tmp_path: Path) -> None:
    target, line = tmp_path / "rows.txt", "x" * 5000 + "\n"
    children = []
    for _ in range(4):
        if not (child := os.fork()):
            for _ in range(20):
                append_text(target, line)
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert target.read_text() == 80 * line


def test_a_file_digest_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("change", "tells"),
    [
        (lambda room: (room / "a.py").write_text("other"), True),
        (lambda room: (room / "sub" / "deep" / "b.py").write_text("other"), True),
        (lambda room: (room / "sub" / "new.py").write_text(""), True),
        (lambda room: (room / "a.py").rename(room / "c.py"), True),
        (lambda room: (room / "sub" / "deep" / "b.py").unlink(), True),
        (lambda room: (room / "notes.txt").write_text("text"), False),
    ],
    ids=["a file", "a file of a sub-room", "a new file", "a name", "a file gone", "no code"],
)
def test_a_code_digest_sees_a_change(change: Callable[[Path], object], tells: bool, tmp_path: Path) -> None:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "sub" / "deep" / "b.py").write_text("2")
    before = code_digest(tmp_path)
    assert code_digest(tmp_path) == before
    change(tmp_path)
    assert (code_digest(tmp_path) != before) == tells


ROOMS = {"data": encoding_digest.__wrapped__, "sweep/prediction": code_hash}


@pytest.mark.parametrize(
    ("room", "path"),
    [(room, path) for room in ROOMS for path in sorted((PACKAGE / room).rglob("*.py"))],
    ids=lambda value: value.relative_to(PACKAGE).as_posix() if isinstance(value, Path) else None,
)
def test_every_file_of_a_room_and_its_sub_rooms_is_in_its_key(
    room: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoded rows are made again, and a prediction is told from older ones, when any of the code changes."""
    before = ROOMS[room]()
    monkeypatch.setattr(files, "file_digest", lambda file: "changed" if file == path else file_digest(file))
    assert ROOMS[room]() != before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_bytes_of_a_tensor_do_not_depend_on_its_layout(dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    assert tensor_bytes(tensor.T.contiguous().T) == tensor_bytes(tensor)
    assert len(tensor_bytes(tensor)) == 6 * tensor.element_size()
    assert tensor_bytes(tensor) != tensor_bytes(tensor.T.contiguous()) or dtype == torch.bool
    assert tensor_bytes(tensor[:0]) == b""


def test_json_is_strict() -> None:
    value = {"a": float("nan"), 2: (1, float("inf")), "é": [True, None, 0.1]}
    text = to_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "2": [1, None], "é": [True, None, 0.1]}
    assert "é" in text
    assert finite({"path": Path("x")}) == {"path": repr(Path("x"))}


def test_where_things_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LIGHTNING_SFT_CACHE", "LIGHTNING_SFT_DATA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_root() == Path.home() / ".cache" / "lightning_sft"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert encoded_rows_root() == tmp_path / "lightning_sft" / "data"
    monkeypatch.setenv("LIGHTNING_SFT_CACHE", "~/elsewhere")
    assert encoded_rows_root() == Path.home() / "elsewhere" / "data"
    monkeypatch.setenv("LIGHTNING_SFT_DATA_CACHE", str(tmp_path / "rows"))
    assert (cache_root(), encoded_rows_root()) == (Path.home() / "elsewhere", tmp_path / "rows")
