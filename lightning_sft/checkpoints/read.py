"""Read a checkpoint, a file or a folder of shards, or say what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_sft.checkpoints.shards import check_whole, read_common
from lightning_sft.errors import UserError, first_line


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, its tensors left on the disk; without weights if it is a folder of shards.

    Raises:
        UserError: it cannot be read, is cut off, or Lightning did not write it.
    """
    import torch

    if path.is_dir():
        check_whole(path)
        return read_common(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the first wrong byte leads to
        raise UserError(
            f"{str(path)!r} cannot be read as a checkpoint: it is cut off, damaged or something else "
            f"({first_line(error).partition('. ')[0][:200]}). Give a .ckpt file that a run wrote, 'last' or 'best'."
        ) from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise UserError(
            f"Torch reads {str(path)!r}, but Lightning did not write it, so it is no checkpoint. Give a .ckpt of a "
            "run; a model folder or file of weights goes to --model.model_name_or_path."
        )
    return content


def is_whole(path: Path) -> bool:
    """Return whether a checkpoint can be read from its first byte to its last."""
    try:
        read_checkpoint(path)
    except UserError:
        return False
    return True
