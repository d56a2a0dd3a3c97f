"""Checkpoints written while training goes on: a snapshot in memory, and a thread that writes it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, UntypedStorage

Write = Callable[[dict[str, Any], Path], None]


class BackgroundWriter:
    """Writes one snapshot at a time; the memory of the last one is used again, so that there is never a second copy."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._write: Future[None] | None = None
        self._memory: list[UntypedStorage] = []
        self.place: Path | None = None

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written."""
        return self._write is not None and not self._write.done()

    def start(self, write: Write, checkpoint: dict[str, Any], place: Path) -> None:
        """Take a snapshot and begin to write it; waits for the one before.

        Args:
            write: writes a checkpoint to a place.
            checkpoint: may change as soon as this returns.
            place: of the file.
        """
        self.settle()
        taken = _Snapshot(self._memory)
        content = taken.of(checkpoint)
        self._memory = taken.used
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
        self.place = place
        self._write = self._thread.submit(write, content, place)

    def check(self) -> None:
        """Raise what went wrong in a write that has ended, once.

        Raises:
            OSError: the disk is full, or the folder is gone; the old file is as it was.
        """
        if self._write is not None and self._write.done():
            ended, self._write = self._write, None
            ended.result()

    def finish(self) -> None:
        """Wait for a write under way.

        Raises:
            OSError: see `check`.
        """
        if self._write is not None:
            self._write.exception()
        self.check()

    def settle(self) -> None:
        """Wait for a write under way; what it raises is forgotten, since another one follows, which would raise it."""
        if self._write is not None:
            self._write.exception()
            self._write = None

    def close(self) -> None:
        """Wait for a write under way, and let thread and memory go.

        Raises:
            OSError: see `check`.
        """
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._thread, self._memory = None, []
        self.finish()


class _Snapshot:
    """A copy of plain data and tensors, on the CPU; tensors that share memory share it in the copy.

    Args:
        memory: storages of an earlier snapshot, to be written over.
    """

    def __init__(self, memory: list[UntypedStorage]) -> None:
        self._free = memory
        self._copies: dict[tuple[torch.device, int, int], UntypedStorage] = {}
        self.used: list[UntypedStorage] = []

    def of(self, value: Any) -> Any:
        """Return the copy of a value, containers by their kind."""
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            copied = {key: self.of(item) for key, item in value.items()}
            return copied if type(value) is dict else _like(value, copied)
        if type(value) in (list, tuple, set):
            return type(value)(map(self.of, value))
        return value  # numbers and texts; nothing else is in our checkpoints

    def _tensor(self, tensor: Tensor) -> Tensor:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            return tensor.detach().to("cpu", copy=True)
        storage = tensor.detach().untyped_storage()
        key = (storage.device, storage.data_ptr(), storage.nbytes())
        if key not in self._copies or not storage.nbytes():
            self._copies[key] = self._stored(storage)
        view = torch.empty(0, dtype=tensor.dtype)
        return view.set_(self._copies[key], tensor.storage_offset(), tensor.size(), tensor.stride())

    def _stored(self, storage: UntypedStorage) -> UntypedStorage:
        """Return a copy on the CPU, in the memory that the storage at this place of the last snapshot had."""
        place = len(self.used)
        old = self._free[place] if place < len(self._free) else None
        copy = old if old is not None and old.nbytes() == storage.nbytes() else UntypedStorage(storage.nbytes())
        copy.copy_(storage, non_blocking=False)
        self.used.append(copy)
        return copy


def _like(value: dict[Any, Any], copied: dict[Any, Any]) -> Any:
    """Return a subclass of dict, such as ``OrderedDict``, with other content."""
    made = value.copy()
    made.update(copied)
    return made
