"""A fit that ends in a checkpoint other runs start from, and the cell that tells of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from lightning_sft.cli.compare.identity import common_facts, model_digest
from lightning_sft.cli.lightning_cli import SFTCLI
from lightning_sft.compare.result import Point, RunResult
from lightning_sft.files import write_text
from studies.cells import Cell, processor

STAGE = "levels"


class FitCLI(SFTCLI):
    """A fit without checkpoints on its way: the model is written at its end.

    Args:
        args: of the command line.
        watcher: a callback that stands before all others.
    """

    def __init__(self, args: list[str], watcher: Callback) -> None:
        self._watcher = watcher
        super().__init__(args)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        kept = [c for c in trainer.callbacks if not isinstance(c, Checkpoint)]  # type: ignore[attr-defined]
        trainer.callbacks = [self._watcher, *kept]  # type: ignore[attr-defined]
        return trainer


def fit(content: dict[str, Any], work: Path, watcher: Callback) -> FitCLI:
    """Fit a configuration to its end.

    Args:
        content: the configuration; its folder is set here.
        work: folder of its own.
        watcher: see `FitCLI`.
    """
    here = {**content, "trainer": {**content["trainer"], "default_root_dir": str(work)}}
    write_text(work / "config.yaml", str(yaml.safe_dump(here, sort_keys=False)))
    return FitCLI(["fit", f"--config={work / 'config.yaml'}"], watcher)


def start_name(start: str) -> str:
    """Return a start without where on this machine it lies."""
    return start if "://" in start else Path(start).name


def level_cell(
    study: str,
    block: str,
    arm: str,
    content: dict[str, Any],
    curve: Sequence[Point],
    trainer: Trainer,
    folder: Path,
    start: str,
    commit: str | None,
    since: float,
) -> Cell:
    """Return the cell that tells of a checkpoint.

    Args:
        study: its name.
        block: what the checkpoint is.
        arm: the objective that it was made with.
        content: configuration of the fit.
        curve: what was read on the way; the last point is the checkpoint itself.
        trainer: of the fit.
        folder: that the checkpoint was written into.
        start: the model that the fit began with.
        commit: of this checkout.
        since: `time.perf_counter` when it began.
    """
    wall, device = time.perf_counter() - since, str(trainer.strategy.root_device)
    result = RunResult(
        "", f"level {block}", "finished", curve=tuple(curve), steps=trainer.global_step, wall_seconds=wall,
        device=device,
    )  # fmt: skip
    facts = {**common_facts(torch.device("cpu")), "model": model_digest(str(folder), None), "start": start_name(start)}
    settings = {**content, "model": {**content["model"], "model_name_or_path": start_name(start)}}
    rate, seed = float(content["model"]["optimizer"]["init_args"]["lr"]), int(content["seed_everything"])
    return Cell(
        study, STAGE, block, "level", 0, arm, rate, seed, None, commit, settings, facts, processor(), result.plain()
    )
