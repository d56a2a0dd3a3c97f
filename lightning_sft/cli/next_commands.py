"""What one types after a fit."""

from __future__ import annotations

import shlex
from pathlib import Path

from lightning_sft.cli.verbs import OWN_VERBS


def next_commands(folder: Path, checkpoint: Path) -> list[str]:
    """Return the commands that look at a run, test its model and take it elsewhere.

    Args:
        folder: of the run, with its config.yaml.
        checkpoint: its best, or its last.
    """
    run, model = shlex.quote(str(folder)), shlex.quote(str(checkpoint))
    commands = [f"lightning report {run}"] if "report" in OWN_VERBS else []
    commands.append(f"lightning validate {run}/config.yaml --ckpt_path {model}")
    commands += [f"lightning chat --ckpt_path {model}"] if "chat" in OWN_VERBS else []
    return [*commands, f"lightning export --ckpt_path {model} --output {run}/model"]
