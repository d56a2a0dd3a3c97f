"""Rows and arrays that may be larger than memory: kept in memory while they are small, in unnamed files after that."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import override

from lightning_sft.errors import UserError

T = TypeVar("T")
S = TypeVar("S", bound=np.generic)

ROOM = 16 << 20
"""Bytes of pickled rows that stay in memory as they are: sets of up to some ten thousand rows never meet the disk."""
BLOCK = 1 << 20
"""Bytes that are written at a time."""

_FOLDER: ContextVar[Path | None] = ContextVar("folder of temporary files", default=None)


@contextmanager
def spooling_in(folder: Path | None) -> Iterator[None]:
    """Keep what does not fit into memory in files of ``folder``; None, or a folder that cannot be used: in TMPDIR.

    The temporary folder of a system may itself be memory, and small.
    """
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


class Spool(Sequence[T]):
    """A sequence that is appended to, and read in any order; of a long one, one item at a time is in memory.

    Items are pickled; those that cannot be stay in memory. A forked process reads what was appended before the fork.
    """

    def __init__(self) -> None:
        self._items: list[T] | None = []
        self._waiting: list[bytes] = []
        self._waiting_size = self._written = self._size = 0
        self._ends = GrowingArray(np.int64)
        self._unpicklable: dict[int, T] = {}
        self._file: UnnamedFile | None = None

    def append(self, item: T) -> None:
        """Add an item.

        Raises:
            UserError: there is no room on the disk.
        """
        number = len(self)
        if self._items is not None:
            self._items.append(item)
        try:
            text = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        except Exception:  # pickle raises what the objects inside raise
            self._unpicklable[number] = item
            text = b""
        self._waiting.append(text)
        self._waiting_size += len(text)
        self._size += len(text)
        self._ends.extend(self._size)
        if self._items is not None and self._size > ROOM:
            self._items = None
        if self._items is None and self._waiting_size >= BLOCK:
            self._write()

    def _write(self) -> None:
        if self._file is None:
            self._file = UnnamedFile()
        self._file.append(b"".join(self._waiting))
        self._written += len(self._waiting)
        self._waiting, self._waiting_size = [], 0

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    @override
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if self._items is not None:
            return self._items[index]
        number = range(len(self))[index]
        if number in self._unpicklable:
            return self._unpicklable[number]
        if number >= self._written:
            text = self._waiting[number - self._written]
        else:
            assert self._file is not None
            start, end = self._ends.read(number - 1, number + 1) if number else (0, *self._ends.read(0, 1))
            text = self._file.read(start, end - start)
        item: T = pickle.loads(text)
        return item

    def __iter__(self) -> Iterator[T]:
        """Yield the items in their order."""
        return (self[i] for i in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Give another process the items: it cannot read an unnamed file, unless it is forked."""
        return _spool_of, (list(self),)


def _spool_of(items: list[T]) -> Spool[T]:
    spool: Spool[T] = Spool()
    for item in items:
        spool.append(item)
    return spool


class Chosen(Sequence[T]):
    """Some items of a sequence, in an order of their own.

    Args:
        items: the sequence.
        at: (items,) their indices.
    """

    def __init__(self, items: Sequence[T], at: NDArray[np.int64]) -> None:
        self.items, self.at = items, at

    def __len__(self) -> int:
        return len(self.at)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Chosen[T]: ...
    @override
    def __getitem__(self, index: int | slice) -> T | Chosen[T]:
        return Chosen(self.items, self.at[index]) if isinstance(index, slice) else self.items[int(self.at[index])]

    def __iter__(self) -> Iterator[T]:
        """Yield the items in their order."""
        return (self.items[int(i)] for i in self.at)


class GrowingArray(Generic[S]):
    """A one-dimensional array that grows at its end, in memory up to `BLOCK` bytes and in a file after that.

    Args:
        dtype: of its elements.
    """

    def __init__(self, dtype: type[S]) -> None:
        self._dtype = np.dtype(dtype)
        self._waiting = bytearray()
        self._file: UnnamedFile | None = None
        self._written = 0

    def __len__(self) -> int:
        return (self._written + len(self._waiting)) // self._dtype.itemsize

    def extend(self, values: ArrayLike) -> None:
        """Add elements.

        Raises:
            UserError: there is no room on the disk.
        """
        self._waiting += np.asarray(values, self._dtype).tobytes()
        if len(self._waiting) >= BLOCK:
            self._write()

    def _write(self) -> None:
        if self._file is None:
            self._file = UnnamedFile()
        self._file.append(self._waiting)
        self._written += len(self._waiting)
        self._waiting = bytearray()

    def read(self, start: int, stop: int) -> list[Any]:
        """Return the elements from ``start`` up to ``stop``, while more may be added; a forked process can, too."""
        first, last = start * self._dtype.itemsize, stop * self._dtype.itemsize
        content = bytes(self._waiting[max(first - self._written, 0) : max(last - self._written, 0)])
        if first < self._written:
            assert self._file is not None
            content = self._file.read(first, min(last, self._written) - first) + content
        return np.frombuffer(content, self._dtype).tolist()  # type: ignore[no-any-return]

    def finish(self) -> NDArray[S]:
        """Return the array, mapped into memory where it is in a file; nothing can be added afterwards."""
        if self._file is None:
            return np.frombuffer(self._waiting, self._dtype)
        if self._waiting:
            self._write()
        return self._file.mapped(self._dtype)


def pieces(rows: int, size: int) -> Iterator[slice]:
    """Yield slices of up to ``size`` that together are all ``rows``."""
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


class UnnamedFile:
    """A temporary file without a name: it is gone when nothing refers to it, or its process ends in whatever way."""

    def __init__(self) -> None:
        folder = _FOLDER.get()
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            opened = tempfile.TemporaryFile(dir=folder)
        except (OSError, ValueError):  # the cache says what is wrong with its folder
            opened = tempfile.TemporaryFile()
        with opened:
            self._descriptor = os.dup(opened.fileno())

    def append(self, content: bytes | bytearray) -> None:
        """Write at the end.

        Raises:
            UserError: there is no room.
        """
        remaining = memoryview(content)
        try:
            while remaining:
                remaining = remaining[os.write(self._descriptor, remaining) :]
        except OSError as error:
            raise UserError(
                f"Rows that do not fit into memory could not be kept in a temporary file: {error.strerror or error}. "
                "Set data.cache_dir (or, without a cache, TMPDIR) to a folder with room for them as text and as tokens."
            ) from error

    def read(self, start: int, size: int) -> bytes:
        """Return bytes from the middle; forked processes share the file's position, and this does not use it."""
        return os.pread(self._descriptor, size, start)

    def mapped(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the content as an array that lives on without this object."""
        with os.fdopen(os.dup(self._descriptor), "rb+") as file:
            return np.memmap(file, dtype, mode="c").view(np.ndarray)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)
