"""What one types after a fit."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning_sft.places import CHECKPOINTS, RUN_SETTINGS


def next_commands(folder: Path, checkpoint: Path) -> list[str]:
    """Return the commands that look at a run, test its model and take it elsewhere.

    Args:
        folder: of the run, with its config.yaml.
        checkpoint: its best, or its last.
    """
    run, model = shlex.quote(str(folder)), shlex.quote(str(checkpoint))
    if (folder / RUN_SETTINGS).is_file() and checkpoint.parent == folder / CHECKPOINTS:
        return [f"lightning {verb} {run}" for verb in ("report", "validate", "chat", "export")]
    # checkpoints that lie elsewhere, by a dirpath of the user's
    return [f"lightning chat --ckpt_path {model}", f"lightning export --ckpt_path {model} --output {run}/model"]
