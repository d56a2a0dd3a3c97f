"""A folder of arrays under keys: written once, whole or not at all, checked whenever it is opened."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray

from lightning_sft.data.storage.digests import digest
from lightning_sft.files import encoded_rows_root, file_digest, new_folder

META = "meta.json"
PATIENCE = 3.0
"""Seconds of waiting for another process before it is said."""


def cache_folder(setting: bool | str | None) -> Path | None:
    """Return the folder that ``data.cache_dir`` stands for: the package's own if true, none if false or None."""
    if setting is True:
        return encoded_rows_root()
    return Path(setting).expanduser() if setting else None


@dataclass(frozen=True)
class Entry:
    """What stands under one key.

    Args:
        arrays: arrays by name.
        meta: plain data.
        folder: where the arrays are mapped from, if they are.
    """

    arrays: dict[str, NDArray[Any]]
    meta: dict[str, Any]
    folder: Path | None = None


class DamagedError(Exception):
    """An entry is not what was written; the message says in which way."""


class Cache:
    """Entries by key, each in a folder of its own with one ``.npy`` file an array and a ``meta.json``.

    An entry is written beside its place and renamed, under a lock: of several processes that want the same entry one
    makes it and the others wait. The lock goes with its process, however that ends, and what a killed one left behind
    is removed by the next. Sizes and digests of all files are checked at each opening, so that nothing depends on the
    disk having kept its promises; a damaged entry is made again.

    Where the folder cannot be used, there is one warning, and everything is made without it.

    Args:
        root: the folder of all entries; None keeps nothing.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root

    def get(self, key: str, make: Callable[[], Entry], is_current: Callable[[], bool]) -> Entry:
        """Return the entry of ``key``, made if it is not there.

        Args:
            key: a name for a folder; equal keys mean equal entries.
            make: makes the entry; what it raises goes through, and nothing is kept.
            is_current: whether ``key`` still describes what ``make`` has read; if not, nothing is kept.
        """
        if self.root is None:
            return make()
        with suppress(DamagedError):  # looked at again under the lock
            if (found := _open(self.root / key)) is not None:
                return found
        try:
            lock = self._locked(key)
        except OSError as e:
            self._give_up(e)
            return make()
        with lock:
            try:
                if (found := self._sound(key)) is not None:
                    return found
            except OSError as e:
                self._give_up(e)
                return make()
            entry = make()
            if not is_current():
                return entry
            try:
                self._write(key, entry)
            except OSError as e:
                self._give_up(e)
                return entry
            return _open(self.root / key) or entry

    def find(self, key: str) -> Entry | None:
        """Return the entry of ``key`` if it is there and whole."""
        with suppress(DamagedError):
            return None if self.root is None else _open(self.root / key)
        return None

    def remove(self, key: str) -> None:
        """Remove the entry of ``key`` and its lock, where they are; nobody may want it any more."""
        if self.root is not None:
            shutil.rmtree(self.root / key, ignore_errors=True)
            (self.root / f".{key}.lock").unlink(missing_ok=True)

    def _locked(self, key: str) -> AbstractContextManager[Any]:
        """Return the lock of ``key``, held until its context ends; waits for the process that holds it.

        Raises:
            OSError: there can be no lock file here.
        """
        assert self.root is not None
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / f".{key}.lock")
        try:
            return lock.acquire(timeout=PATIENCE)
        except Timeout:
            rank_zero_info("Waiting for another process that tokenises the same rows.")
            return lock.acquire()

    def _sound(self, key: str) -> Entry | None:
        """Return the entry if it is whole; remove a damaged one, and say so."""
        assert self.root is not None
        folder = self.root / key
        try:
            return _open(folder)
        except DamagedError as e:
            warnings.warn(f"The encoded rows kept in {folder} are damaged ({e}); they are made again.", stacklevel=4)
            shutil.rmtree(folder)
            return None

    def _write(self, key: str, entry: Entry) -> None:
        """Write an entry; afterwards it is there as a whole or not at all."""
        assert self.root is not None
        self._remove_partial(key)
        with new_folder(self.root / key) as partial:
            for name, array in entry.arrays.items():
                np.save(partial / f"{name}.npy", array, allow_pickle=False)
            files = {p.name: [p.stat().st_size, file_digest(p)] for p in sorted(partial.glob("*.npy"))}
            content = {"files": files, "meta": entry.meta}
            (partial / META).write_text(json.dumps({"digest": digest(content), **content}), encoding="utf-8")

    def _remove_partial(self, key: str) -> None:
        """Remove what killed processes left: whoever still writes holds the lock of its key."""
        assert self.root is not None
        for partial in self.root.glob(".*.partial"):
            other = partial.name.split(".")[1]
            with _if_free(self.root / f".{other}.lock", is_held=other == key) as free:
                if free:
                    shutil.rmtree(partial, ignore_errors=True)

    def _give_up(self, error: OSError) -> None:
        """Go on without the cache, and say once what to do about it."""
        rank_zero_warn(
            f"The cache folder {self.root} cannot be used ({error.strerror or error}), so rows are tokenised anew in "
            "each process and each run. Set data.cache_dir (or LIGHTNING_SFT_DATA_CACHE) to a writable folder with "
            "space, or data.cache_dir: false to do without.",
            stacklevel=4,
        )
        self.root = None


@contextmanager
def _if_free(path: Path, is_held: bool) -> Iterator[bool]:
    """Tell whether nobody else holds a lock, and hold it meanwhile."""
    if is_held:
        yield True
        return
    try:
        lock = FileLock(path).acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    with lock:
        yield True


def _open(folder: Path) -> Entry | None:
    """Map the arrays of an entry; None if there is none.

    Raises:
        DamagedError: a file is missing, or has another size or content than was written.
    """
    if not folder.is_dir():
        return None
    try:
        stored = json.loads((folder / META).read_text(encoding="utf-8"))
        expected = stored.pop("digest")
        if digest(stored) != expected:
            raise DamagedError(f"{META} was changed")
        for name, (size, content) in stored["files"].items():
            found = (folder / name).stat().st_size
            if found != size:
                raise DamagedError(f"{name} has {found} of {size} bytes")
            if file_digest(folder / name) != content:
                raise DamagedError(f"{name} was changed")
        arrays = {Path(name).stem: map_array(folder / name) for name in stored["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DamagedError(f"{type(e).__name__}: {e}") from e
    with suppress(OSError):  # so that the age of a folder tells when it was last used
        os.utime(folder)
    return Entry(arrays, stored["meta"], folder)


def map_array(path: Path) -> NDArray[Any]:
    """Map an array into memory: its pages are shared by all processes, and read when they are touched.

    Written-to pages would be this process's own: torch warns about arrays that cannot be written to.
    """
    return np.load(path, mmap_mode="c", allow_pickle=False).view(np.ndarray)  # type: ignore[no-any-return]
