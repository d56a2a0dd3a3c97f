"""Checkpoints that are folders with a file of each rank, as torch.distributed.checkpoint writes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lightning_sft.errors import UserError, first_line

#: what every rank has in common: loops, callbacks, settings
_COMMON = "meta.pt"
_PREFIX = "state_dict."


def read_common(folder: Path) -> dict[str, Any]:
    """Return what a sharded checkpoint holds beside weights and optimizer states.

    Raises:
        UserError: the folder is no sharded checkpoint.
    """
    import torch

    if not (folder / _COMMON).is_file() or not (folder / ".metadata").is_file():
        names = sorted(p.name for p in folder.iterdir())[:10]
        raise UserError(
            f"{str(folder)!r} is a folder, which is no sharded checkpoint of FSDP2: it holds {names}, "
            f"but '.metadata' and '{_COMMON}' are needed. Give a .ckpt that a run wrote, 'last' or 'best'."
        )
    try:
        content = torch.load(folder / _COMMON, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the first wrong byte leads to
        raise UserError(f"{str(folder / _COMMON)!r} cannot be read: {first_line(error)}") from error
    assert isinstance(content, dict)
    return content


def check_whole(folder: Path) -> None:
    """Raise unless every file of a sharded checkpoint is there and as long as its index says.

    Raises:
        UserError: the folder is no sharded checkpoint, or a file is missing or cut off; names it.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    read_common(folder)
    try:
        stored = FileSystemReader(folder).read_metadata().storage_data
    except Exception as error:  # pickle raises whatever the first wrong byte leads to
        raise UserError(f"{str(folder / '.metadata')!r} cannot be read: {first_line(error)}") from error
    ends: dict[str, int] = {}
    for piece in stored.values():
        ends[piece.relative_path] = max(ends.get(piece.relative_path, 0), piece.offset + piece.length)
    for name, end in ends.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if size < end:
            raise UserError(
                f"The checkpoint {str(folder)!r} is not whole: {name} has {size} of {end} bytes. Give another one."
            )


def weights(folder: Path, *, empty: bool = False) -> dict[str, Any]:
    """Return the weights of a sharded checkpoint in one piece, on the CPU, in this process alone.

    Args:
        folder: the checkpoint.
        empty: leave the values out: names, shapes and dtypes on the meta device.
    """
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    device = "meta" if empty else "cpu"
    tensors = {
        name.removeprefix(_PREFIX): torch.empty(entry.size, dtype=entry.properties.dtype, device=device)
        for name, entry in stored.items()
        if name.startswith(_PREFIX) and isinstance(entry, TensorStorageMetadata)
    }
    if not empty:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            load({_PREFIX.rstrip("."): tensors}, checkpoint_id=folder, no_dist=True)
    return tensors
