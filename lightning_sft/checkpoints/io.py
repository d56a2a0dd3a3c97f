"""How checkpoints reach the disk: beside their place, synced, renamed; a file, or a folder of shards."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from typing_extensions import override

from lightning_sft._lightning.saving import around_saving, set_base_checkpoint_io
from lightning_sft.checkpoints.background import BackgroundWriter
from lightning_sft.checkpoints.read import read_checkpoint
from lightning_sft.files import beside, naming, sync, sync_all

#: strategies whose checkpoints may be folders
WRITE_FOLDERS = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)


class SafeCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place, sync it, and rename it: a kill or a full disk leaves the old one whole.

    Lightning's own stages the file in ``TMPDIR`` and moves it, which on another filesystem is a copy over the old
    checkpoint. Remote paths are left to Lightning.

    Attributes:
        background: writes what is saved inside `behind`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.background = BackgroundWriter()
        self._behind = False

    @contextmanager
    def behind(self) -> Iterator[None]:
        """Let what is saved inside this context be a snapshot that is written while the caller goes on.

        ``background.check`` tells later what went wrong.
        """
        self._behind = True
        try:
            yield
        finally:
            self._behind = False

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or not _is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        place = Path(path)
        if self._behind:
            self.background.start(_write, checkpoint, place)
            return
        if place == self.background.place:  # an older one must not come after
            self.background.settle()
        _write(checkpoint, place)

    @override
    def teardown(self) -> None:
        self.background.close()
        super().teardown()

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        try:
            return super().load_checkpoint(path, map_location, weights_only)
        except FileNotFoundError:
            raise
        except Exception:
            if _is_local(path):
                read_checkpoint(Path(path))  # says what is wrong with it
            raise


def _write(checkpoint: dict[str, Any], place: Path) -> None:
    """Write a checkpoint beside its place, and let it take that.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(place)
    try:
        with naming(place):
            with partial.open("wb") as file:  # an open file: with a name, torch does not say why it failed
                torch.save(checkpoint, file)
            _take_place(partial, place)
    finally:
        remove(partial)


def writes_behind(trainer: Trainer) -> SafeCheckpointIO | None:
    """Return what can write a trainer's checkpoints while training goes on; None where the run has to wait for them.

    Strategies that shard gather or write on all ranks at once.
    """
    used = trainer.strategy.checkpoint_io
    return used if isinstance(used, SafeCheckpointIO) and not isinstance(trainer.strategy, WRITE_FOLDERS) else None


def write_safely(trainer: Trainer) -> None:
    """Make a trainer write its checkpoints beside their place; one with a ``CheckpointIO`` of the user's keeps that.

    May be called again.
    """
    strategy = trainer.strategy
    set_base_checkpoint_io(strategy, SafeCheckpointIO())
    if isinstance(strategy, WRITE_FOLDERS):
        around_saving(strategy, _save_beside)


def _save_beside(strategy: Strategy, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any) -> None:
    """Save a checkpoint, perhaps a folder that all ranks write, under another name, and let it take its place."""
    place = Path(strategy.broadcast(str(filepath)))
    partial = Path(strategy.broadcast(str(beside(place))))
    if strategy.is_global_zero:
        place.parent.mkdir(parents=True, exist_ok=True)
    strategy.barrier("checkpoint folder")
    try:
        type(strategy).save_checkpoint(strategy, checkpoint, partial, storage_options)
        strategy.barrier("checkpoint written")
        if strategy.is_global_zero:
            _take_place(partial, place)
    finally:
        if strategy.is_global_zero:
            remove(partial)
    strategy.barrier("checkpoint in place")


def _take_place(partial: Path, place: Path) -> None:
    """Sync a new checkpoint and put it in its place; the old one goes only when the new one stands."""
    sync_all(partial)
    old = place.with_name(f"{place.stem}.previous{place.suffix}")
    if place.is_dir() or (partial.is_dir() and place.exists()):
        remove(old)
        place.rename(old)  # no rename replaces a folder; a kill before the next line leaves the old one under this name
    partial.replace(place)
    sync(place.parent)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_local(path: str | Path) -> bool:
    return "://" not in str(path) and "::" not in str(path)  # as fsspec tells remote paths
