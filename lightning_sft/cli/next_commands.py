"""What one types after a command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_sft.places import MODEL, free, newest_settings, run_of


def next_commands(folder: Path, checkpoint: Path) -> dict[str, list[str]]:
    """Return the commands that look at a run, and those that test its model and take it elsewhere.

    Args:
        folder: of the run, with its config.yaml.
        checkpoint: its best, or its last.
    """
    run, model = shlex.quote(str(folder)), shlex.quote(str(checkpoint))
    look = [f"lightning report {run}"]
    if any(folder.glob("events.out.tfevents.*")):
        look.insert(0, f"tensorboard --logdir {run}")
    place = free(folder / MODEL)
    output = f" --output {shlex.quote(str(place))}"
    if run_of(checkpoint) == folder:
        use = [f"lightning {verb} {run}" for verb in (*_readers(newest_settings(folder)), "chat", "export")]
        use[-1] += "" if place.name == MODEL else output  # an earlier export is in the way
    else:  # checkpoints that lie elsewhere, by a dirpath of the user's
        use = [f"lightning chat --ckpt_path {model}", f"lightning export --ckpt_path {model}{output}"]
    return {"Look at the run:": look, "Use its best model:" if checkpoint.stem == "best" else "Use its model:": use}


def after_reading(verb: str, checkpoint: Path) -> list[str]:
    """Return what to type after a validation or a test of a run's checkpoint; nothing for one that lies elsewhere.

    Args:
        verb: ``validate`` or ``test``.
        checkpoint: that was read.
    """
    folder = run_of(checkpoint)
    if folder is None:
        return []
    readers = [reader for reader in _readers(newest_settings(folder)) if (reader, verb) == ("test", "validate")]
    writers = [] if (folder / MODEL).exists() else ["export"]
    return [f"lightning {then} {shlex.quote(str(folder))}" for then in (*readers, "chat", *writers)]


def listed(commands: Sequence[str]) -> str:
    """Return commands as the list that a verb ends with, after an empty line; empty without any."""
    return "".join(f"\n{'' if i else 'Next':<11}{command}" for i, command in enumerate(commands))


def _readers(settings: Path) -> list[str]:
    """Return the verbs that find rows to read in the settings of a run."""
    data: Any = (yaml.safe_load(settings.read_text(encoding="utf-8")) or {}).get("data")
    data = data.get("init_args", data) if isinstance(data, dict) else {}
    sets = {"test": data.get("test"), "validate": data.get("val") or data.get("val_split")}
    return [verb for verb, rows in sets.items() if rows]
