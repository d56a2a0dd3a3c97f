"""Run folders: where the last run and its checkpoints are."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_sft.checkpoints.shards import read_common
from lightning_sft.errors import UserError, first_line

#: Loggers that keep a run in ``save_dir/name/version``.
TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"
VERSIONED = (TENSORBOARD, "lightning.pytorch.loggers.CSVLogger")
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint and the run it belongs to.

    Attributes:
        path: the checkpoint, a file or a sharded folder.
        version: name of the run's folder, such as ``version_3``; None for a checkpoint outside a run folder.
    """

    path: Path
    version: str | None


def find_checkpoint(which: str, root: Path, extra: list[Path]) -> RunCheckpoint:
    """Return the checkpoint that ``--ckpt_path`` means.

    Args:
        which: ``"last"``: the newest checkpoint of the newest run; ``"best"``: the best one of that run; or a path.
        root: the folder of the runs, each with its ``checkpoints`` folder.
        extra: further checkpoint folders, such as a ModelCheckpoint's ``dirpath``.

    Raises:
        UserError: there is none; says where was looked.
    """
    if which not in ("last", "best"):
        path = Path(which).expanduser()
        if not path.exists():
            raise UserError(f"--ckpt_path is {which!r}, which does not exist. Allowed: a checkpoint, 'last' or 'best'.")
        if path.is_file():  # folders are left to their strategy
            read_checkpoint(path)
        return RunCheckpoint(path, _version(path, root))
    # version folders, no logger at all, and loggers that put a project between (W&B)
    depths = (f"*/{CHECKPOINTS}", CHECKPOINTS, f"*/*/{CHECKPOINTS}")
    folders = [folder for depth in depths for folder in root.glob(depth)]
    found = [path for folder in (*folders, *extra) for path in folder.glob("*.ckpt")]
    if not found:
        raise UserError(
            f"--ckpt_path {which}: no run with a checkpoint was found in {str(root)!r}. Start a run without "
            "--ckpt_path, or give the path of a checkpoint."
        )
    newest = max(found, key=lambda p: p.stat().st_mtime_ns)
    if which == "best":
        return RunCheckpoint(_best(newest), _version(newest, root))
    last = newest.with_name("last.ckpt")  # another one may have been written in the middle of a step
    return RunCheckpoint(last if last.is_file() else newest, _version(newest, root))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, its tensors left on the disk; without weights if it is a folder of shards.

    Raises:
        UserError: it cannot be read, or Lightning did not write it.
    """
    import torch

    if path.is_dir():
        return read_common(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever the first wrong byte leads to
        raise UserError(
            f"--ckpt_path is {str(path)!r}, which cannot be read as a checkpoint: {first_line(error)} "
            "It may be cut off or something else. Give a .ckpt file that a run wrote, 'last' or 'best'."
        ) from error
    if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
        raise UserError(
            f"--ckpt_path is {str(path)!r}, which torch reads but Lightning did not write. Give a .ckpt file of a run; "
            "a model folder or file of weights goes to --model.model_name_or_path."
        )
    return content


def _version(checkpoint: Path, root: Path) -> str | None:
    """Return the name of the run's folder, if the checkpoint lies in ``root/version/checkpoints``."""
    run = checkpoint.parent.parent
    inside = checkpoint.parent.name == CHECKPOINTS and run.parent.resolve() == root.resolve()
    return run.name if inside else None


def _best(checkpoint: Path) -> Path:
    """Return the best checkpoint of a run, as the state of its ModelCheckpoint says."""
    states: dict[str, Any] = read_checkpoint(checkpoint)["callbacks"]
    monitoring = [s for k, s in states.items() if k.startswith("ModelCheckpoint") and s.get("monitor")]
    for state in monitoring:
        best = Path(state["best_model_path"])
        for path in (best, checkpoint.parent / best.name):  # the folder may have been moved
            if path.exists():
                return path
    raise UserError(
        f"--ckpt_path best: the run of {str(checkpoint)!r} kept no best checkpoint. Use 'last', or give a path."
    )


def keep_metrics(run: Path) -> None:
    """Copy the metrics.csv of a run that goes on: Lightning's CSVLogger deletes the one it finds."""
    metrics = run / "metrics.csv"
    if metrics.is_file():
        number = len(list(run.glob("metrics_before_resume_*.csv")))
        shutil.copy2(metrics, run / f"metrics_before_resume_{number}.csv")


def remove_unstarted(place: Path) -> None:
    """Remove the folder of a run that failed before its first step: Lightning opens event files before it knows.

    A run that started has its config.yaml there; a folder with anything else than a logger's own files stays, too.
    """
    if not place.is_dir():
        return
    files = list(place.iterdir())
    if all(
        file.name.startswith("events.out.tfevents") or file.name in ("hparams.yaml", "metrics.csv") for file in files
    ):
        for file in files:
            file.unlink()
        place.rmdir()
