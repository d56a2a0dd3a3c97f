"""Checkpoints at a mean p: fine-tuning on clean rows that stops where the mean p of unseen rows reaches the level."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_sft.compare.result import Point
from lightning_sft.errors import UserError
from lightning_sft.export.folder import write_folder
from studies.cells import Cell
from studies.checkpoints import fit, level_cell
from studies.continuum.design import BOTTOM, FIRST, LEVELS, STUDY, common, source

SEED = 1
#: optimizer steps between two looks at the mean p: on the way to a low level, and to others; mean p rises fastest there
LOOK_LOW, LOOK = 1, 4
#: the most steps until the level is reached
MOST = 2000
#: rows that the mean p is read from
PROBE = 100
RATE = 3e-5
READ = ("val/mean_p", "val/nll", "val/exact_match")


def settings(task: str, target: float, start: str, small: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the configuration of the way to a level.

    Args:
        task: one of `TASKS`.
        target: the mean p to stop at.
        start: the model, or the level below.
        small: other numbers for a toy: ``levels`` (rows), ``look``, ``most``, ``probe``, ``rate``.
    """
    look = LOOK_LOW if target <= 0.1 else LOOK
    sizes = {"levels": 2000, "look": look, "most": MOST, "probe": PROBE, "rate": RATE, **(small or {})}
    content = common(start)
    content["seed_everything"] = SEED
    content["model"]["optimizer"]["init_args"]["lr"] = sizes["rate"]
    content["model"]["lr_scheduler"] = "constant"
    # the seed of the rows follows from the target: a level goes on with another draw than the one below
    content["data"] |= {
        "train": source(task, "levels", sizes["levels"], seed=round(1000 * target)),
        "val": source(task, "train", sizes["probe"]),
        "seed": SEED,
    }
    stop = {"monitor": "val/mean_p", "mode": "max", "stopping_threshold": target, "patience": 10**6, "verbose": False}
    content["trainer"] |= {
        "max_steps": sizes["most"],
        "max_epochs": -1,
        "val_check_interval": sizes["look"],
        "num_sanity_val_steps": -1,
        "callbacks": [
            {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop},
            {"class_path": "lightning_sft.callbacks.GenerationMonitor", "init_args": {"samples": 0, "limit": 0}},
            {"class_path": "lightning_sft.callbacks.CapabilityProbe", "init_args": {"enabled": False}},
            {"class_path": "lightning_sft.callbacks.SilentFailureMonitor", "init_args": {"enabled": False}},
        ],
    }
    return content


class _Way(Callback):
    """Keeps what is read on the way to a level, and refuses one that the model is above before the first step.

    Args:
        target: mean p of the level.
        named: task and level in words.
    """

    def __init__(self, target: float, named: str) -> None:
        self.target = target
        self.named = named
        self.points: list[Point] = []

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        read = {k: float(v) for k, v in trainer.callback_metrics.items() if k in READ}
        if trainer.sanity_checking and read["val/mean_p"] >= self.target:
            raise UserError(
                f"{self.named}: the model starts at a mean p of {read['val/mean_p']:.3f}, and the level is "
                f"{self.target}. Choose a harder task, or a higher level."
            )
        self.points.append(Point(trainer.global_step, 0, 0.0, read))


def make_level(
    task: str, level: str, start: str, folder: Path, commit: str | None, small: Mapping[str, Any] | None = None
) -> Cell:
    """Fine-tune to a level, write the checkpoint into ``folder``, and return the cell that tells of it.

    Args:
        task: one of `TASKS`.
        level: one of `LEVELS`.
        start: the model, or the folder of the level below.
        folder: of the checkpoint; it must not exist.
        commit: of this checkout.
        small: see `settings`.

    Raises:
        UserError: the model is above the level before the first step, or does not reach it.
    """
    target, since = {**LEVELS, **(small or {}).get("targets", {})}[level], time.perf_counter()
    content = settings(task, target, start, small)
    way = _Way(target, f"{task}, {level}")
    cli = fit(content, folder.with_name(f"{folder.name} under way"), way)
    trainer, module = cli.trainer, cli.model
    mean_p = float(trainer.callback_metrics["val/mean_p"])
    if mean_p < target:
        raise UserError(f"{task}: mean p is {mean_p:.3f} after {trainer.global_step} steps; {level!r} is {target}.")
    bottom = float(_probabilities(module, trainer).quantile(BOTTOM / 100))
    last = way.points[-1]
    write_folder(module, folder)
    curve = (*way.points[:-1], replace(last, values={**last.values, f"p at {BOTTOM}%": bottom}))
    return level_cell(STUDY, f"{task}, {level}", FIRST, content, curve, trainer, folder, start, commit, since)


@torch.no_grad()
def _probabilities(module: Any, trainer: Trainer) -> Tensor:
    """Return p of every supervised token of the validation rows."""
    loaders: Any = trainer.val_dataloaders
    module.eval()
    found = [module(batch).scores.logp.exp() for batch in loaders]
    return torch.cat(found).double()
