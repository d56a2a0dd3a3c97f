"""Atomic writes (temporary file beside the target, fsync, rename), digests, JSON, and the cache folders."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def cache_root() -> Path:
    """Return the cache folder: ``LIGHTNING_SFT_CACHE``, or ``lightning_sft`` under the user's cache folder."""
    explicit = os.environ.get("LIGHTNING_SFT_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lightning_sft"


def encoded_rows_root() -> Path:
    """Return the folder of encoded rows: ``LIGHTNING_SFT_DATA_CACHE``, or ``data`` in the cache folder."""
    explicit = os.environ.get("LIGHTNING_SFT_DATA_CACHE")
    return Path(explicit).expanduser() if explicit else cache_root() / "data"


# ---------------------------------------------------------------------- writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a new file beside ``path``; when the context ends well, it takes that place, synced.

    A reader sees the old file or the new one, never a part of one, whatever kills the process. If the context
    raises, the old file stays and the new one is removed. Folders above are made.

    Raises:
        OSError: the folder cannot be written, or the disk is full; the old file is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        with naming(path):
            yield partial
            sync(partial)
            partial.replace(path)
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is never seen half written; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file that is never seen half written; line ends stay as given; see `replacing`."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def new_folder(folder: Path, *, place: Path | None = None) -> Iterator[Path]:
    """Give the path of a new empty folder; when the context ends well, it becomes ``folder``, with all files synced.

    Args:
        folder: must not exist when the context ends, or be empty.
        place: where the new folder is made meanwhile; the parent of ``folder`` by default. On the same filesystem.

    Raises:
        OSError: it cannot be written, or ``folder`` exists by then; nothing is left behind.
    """
    if place is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(folder if place is None else place / folder.name)
    try:
        with naming(folder):
            partial.mkdir()
            yield partial
            sync_all(partial)
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(folder)
            sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def append_text(path: Path, text: str) -> None:
    """Append whole lines to a UTF-8 file in one write, and sync it: what was there before is never touched.

    Of a killed process, at worst the last line is cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    with naming(path), os.fdopen(descriptor, "wb", buffering=0) as file:
        remaining = memoryview(text.encode("utf-8"))
        while remaining:
            remaining = remaining[file.write(remaining) :]
        os.fsync(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file or folder that was to be written where the system says that it cannot be, as on a full disk.

    Raises:
        OSError: of the same number, with ``path`` as its file name.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, *_partials(path, error.filename)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _partials(path: Path, name: object) -> tuple[object, ...]:
    """Return the name itself if it is one that `beside` gave for ``path``, or of a file in such a folder."""
    return (name,) if f".{path.name}." in str(name) and ".partial" in str(name) else ()


def beside(path: Path) -> Path:
    """Return a name beside ``path`` that nobody else uses, for what is to take its place when it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.partial")


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half written in a folder that no other process is writing to."""
    for path in folder.glob(".*.partial"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_all(path: Path) -> None:
    """Flush a file, or a folder and all that it holds, to the disk."""
    for inner in sorted(path.rglob("*"), reverse=True):  # what a folder holds before the folder
        sync(inner)
    sync(path)


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk; filesystems that cannot sync a folder are passed over."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if path.is_dir():
            with suppress(OSError):
                os.fsync(descriptor)
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------- digests and JSON


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest of a file's content, as hexadecimal digits."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def code_digest(*rooms: Path) -> str:
    """Return the SHA-256 digest of the Python files in folders and all folders inside them, with their names."""
    state = hashlib.sha256()
    for room in rooms:
        for path in sorted(room.rglob("*.py")):
            state.update(f"{path.relative_to(room).as_posix()} {file_digest(path)}\n".encode())
    return state.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's elements, in order, whatever its dtype and device."""
    import torch

    whole = tensor.detach().contiguous().cpu().reshape(-1)
    return whole.view(torch.uint8).numpy().tobytes() if whole.numel() else b""


def finite(value: Any) -> Any:
    """Return plain data as strict JSON can hold it: numbers that are not finite become None, tuples lists.

    What is no plain data becomes its ``repr``.
    """
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def to_json(value: Any, indent: int | None = None) -> str:
    """Return strict JSON of plain data; see `finite`."""
    return json.dumps(finite(value), indent=indent, allow_nan=False, ensure_ascii=False)
