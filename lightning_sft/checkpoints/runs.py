"""Run folders: where a run keeps its checkpoints, and which one ``last`` and ``best`` mean."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_sft.checkpoints.read import is_whole, read_checkpoint
from lightning_sft.checkpoints.slurm import is_continued_by
from lightning_sft.errors import UserError
from lightning_sft.places import CHECKPOINT_WORDS, CHECKPOINTS, LAST, require_checkpoint_place

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

#: callbacks that keep a best checkpoint, by the beginning of their key in a checkpoint; the first one present counts
KEEPERS = ("BestCheckpoint", "ModelCheckpoint")
#: the folder of runs under the root, as Lightning's loggers name it
LOGS = "lightning_logs"
#: under which a checkpoint holds what `LastCheckpoint` knows of the run
RUN_STATE = "LastCheckpoint"


def run_folder(trainer: Trainer) -> Path | None:
    """Return the folder of a run, in which Lightning's ModelCheckpoint makes ``checkpoints``; None without a logger."""
    if not trainer.loggers:
        return None
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version)


def next_version(roots: Iterable[Path]) -> int:
    """Return the lowest number whose ``version_N`` no folder has yet, nor any after it."""
    names = [path.name.removeprefix("version_") for root in roots for path in root.glob("version_*")]
    return max((int(name) for name in names if name.isdecimal()), default=-1) + 1


def find_checkpoint(which: str, roots: Iterable[Path], extra: Iterable[Path] = ()) -> Path:
    """Return the checkpoint that ``--ckpt_path`` means.

    Args:
        which: ``"last"``: the newest checkpoint of the newest run; ``"best"``: the best one of that run; or a path: of
            a checkpoint, or of a run's folder, which means its best checkpoint, or its last if it kept no best one.
        roots: folders of runs, each with its ``checkpoints`` folder.
        extra: further checkpoint folders, such as a ModelCheckpoint's ``dirpath``.

    Raises:
        UserError: there is none, or it is not whole; says where was looked, and which one is whole.
    """
    if which not in CHECKPOINT_WORDS:
        path = Path(which).expanduser()
        return _of_run(path) if (path / CHECKPOINTS).is_dir() else _by_path(path)
    roots = list(roots)
    newest = _newest_run(roots, extra)
    if not newest:
        raise UserError(
            f"--ckpt_path {which}: no run with a checkpoint was found in {', '.join(repr(str(r)) for r in roots)}. "
            "Start a run without --ckpt_path, or give the path of a checkpoint."
        )
    if which == "best":
        return _best(newest)
    return _last(newest)


def _of_run(run: Path) -> Path:
    """Return the best checkpoint of a run, or its last if it kept no record of a best one."""
    newest = _checkpoints([], [run / CHECKPOINTS])
    if not newest:
        raise UserError(f"--ckpt_path is {str(run)!r}, a run without a checkpoint. Allowed: a run that has one.")
    return _recorded_best(newest) or _last(newest)


def _last(newest: list[Path]) -> Path:
    last = newest[0].with_name(LAST)  # another one may have been written in the middle of a step
    meant = last if last in newest else newest[0]
    if not is_whole(meant) and not _is_left_to_its_strategy(meant):
        whole = next((path for path in newest if path != meant and is_whole(path)), None)
        remedy = "No other checkpoint of the run is whole." if whole is None else f"Whole is: --ckpt_path {whole}"
        raise UserError(f"--ckpt_path last is {str(meant)!r}, which is cut off or damaged. {remedy}")
    return meant


def find_below(which: str, folder: Path = Path()) -> Path:
    """Return the checkpoint that ``--ckpt_path`` means where no configuration says where runs lie.

    Args:
        which: see `find_checkpoint`.
        folder: below which runs are looked for.

    Raises:
        UserError: see `find_checkpoint`.
    """
    # runs lie in save_dir/name/version: the default logger's save_dir is the current folder, others name one
    runs = [found for depth in (2, 3) for found in folder.glob("*/" * depth + CHECKPOINTS)]
    return find_checkpoint(which, [folder], runs)


def _newest_run(roots: Iterable[Path], extra: Iterable[Path]) -> list[Path]:
    """Return the checkpoints of the run that was written to last, the newest first."""
    found = _checkpoints(roots, extra)
    return [path for path in found if path.parent == found[0].parent]


def _checkpoints(roots: Iterable[Path], extra: Iterable[Path]) -> list[Path]:
    """Return the checkpoints of all runs, the newest first."""
    # version folders, no version at all, and loggers that put a project between (W&B)
    depths = (f"*/{CHECKPOINTS}", CHECKPOINTS, f"*/*/{CHECKPOINTS}")
    folders = {folder for root in roots for depth in depths for folder in root.glob(depth)} | set(extra)
    found = {path.resolve(): path for folder in folders for path in folder.glob("*.ckpt")}.values()
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _by_path(path: Path) -> Path:
    require_checkpoint_place(str(path))
    if not _is_left_to_its_strategy(path):
        read_checkpoint(path)
    return path


def _is_left_to_its_strategy(path: Path) -> bool:
    """Return whether only the strategy that wrote a folder can read it, as DeepSpeed's."""
    return path.is_dir() and (path / "latest").exists()


def _best(newest: list[Path]) -> Path:
    best = _recorded_best(newest)
    if best is not None:
        return best
    names = ", ".join(str(path) for path in newest[:10])
    raise UserError(
        f"--ckpt_path best: the run of {str(newest[0].parent)!r} kept no record of a best checkpoint. Use 'last', or "
        f"give a path: {names}."
    )


def _recorded_best(newest: list[Path]) -> Path | None:
    """Return the best checkpoint of a run, as the state of its ModelCheckpoint says; None if no state says one.

    Args:
        newest: the run's checkpoints, the newest first; those of weights alone and damaged ones hold no state.
    """
    for checkpoint in newest:
        states = read_checkpoint(checkpoint).get("callbacks", {}) if is_whole(checkpoint) else {}
        keepers = [(keeper, s) for keeper in KEEPERS for k, s in states.items() if k.startswith(keeper)]
        for keeper, state in ((keeper, state) for keeper, state in keepers if state.get("monitor")):
            best = Path(state["best_model_path"])
            if not best.name and keeper == "BestCheckpoint":
                raise UserError(
                    f"--ckpt_path best: none of the {state['readings']} readings of the run of "
                    f"{str(checkpoint.parent)!r} kept the bounds of its BestCheckpoint. Use 'last', or loosen them."
                )
            for path in (best, checkpoint.parent / best.name):  # the folder may have been moved
                if best.name and path.exists():
                    read_checkpoint(path)
                    return path
    return None


def run_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what `LastCheckpoint` stored of a run: its loggers, its SLURM job; empty if it did not."""
    state = checkpoint.get("callbacks", {}).get(RUN_STATE)
    return state if isinstance(state, dict) else {}


def find_requeued(job: dict[str, Any], roots: Iterable[Path], extra: Iterable[Path] = ()) -> Path | None:
    """Return the newest ``last.ckpt`` that the same command of the same SLURM job wrote before it was requeued.

    Args:
        job: of this process; see `slurm_job`.
        roots: folders of runs.
        extra: further checkpoint folders.
    """
    lasts = [path for path in _checkpoints(roots, extra) if path.name == LAST]
    for path in lasts:
        if is_whole(path) and is_continued_by(run_state(read_checkpoint(path)).get("slurm", {}), job):
            return path
    return None


# ---------------------------------------------------------------------- files of loggers


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
