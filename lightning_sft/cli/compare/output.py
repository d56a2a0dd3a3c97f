"""A report as files: JSON, Markdown, a figure, and rows of TensorBoard's HParams."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from lightning_sft.compare.design import Design
from lightning_sft.compare.report import ArmReport, Report
from lightning_sft.compare.words import markdown, sentence, to_json_text
from lightning_sft.figures.comparison import forest_figure
from lightning_sft.files import replacing, write_text

#: settings by which runs of a comparison say less and log elsewhere
QUIETED = ("logger", "enable_model_summary", "enable_progress_bar")


def write(report: Report, folder: Path) -> None:
    """Write ``report.json``, ``report.md``, ``forest.png`` and the folder ``tensorboard``."""
    write_text(folder / "report.json", to_json_text(report))
    write_text(folder / "report.md", f"{sentence(report)}\n\n{markdown(report)}\n")
    with replacing(folder / "forest.png") as partial:
        forest_figure(report).savefig(partial, format="png", dpi=150)
    write_hparams(report, folder / "tensorboard")


def write_best(design: Design, report: Report, file: Path) -> ArmReport | None:
    """Write the settings of a fit of the best arm at its own rate; None where no file of settings says that rate.

    Args:
        design: of the comparison.
        report: of it.
        file: to write.

    Returns:
        The arm.
    """
    best = report.arm(report.ranking[0])
    settings = yaml.safe_load(design.arm(best.name).config)
    model = settings["model"].get("init_args", settings["model"])
    if best.rate is not None:
        if model.get("parameter_rules"):  # the comparison has scaled the rates of these, too
            return None
        named = model.get("optimizer")
        optimizer: dict[str, Any] = named if isinstance(named, dict) else {"class_path": "torch.optim.AdamW"}
        model["optimizer"] = {**optimizer, "init_args": {**(optimizer.get("init_args") or {}), "lr": best.rate}}
    for key in QUIETED:
        settings["trainer"].pop(key, None)
    write_text(file, yaml.safe_dump(settings, sort_keys=False))
    return best


def write_hparams(report: Report, folder: Path) -> None:
    """Write a row of HParams an arm, in place of those that were there."""
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    for number, arm in enumerate(report.arms):
        means = {key: arm.readings[key].mean.mean for key in report.keys if key in arm.readings}
        metrics = {f"compare/{key}": value for key, value in means.items() if math.isfinite(value)}
        settings = {"arm": arm.name, "learning rate": arm.rate or 0.0, "replicates": report.replicates}
        writer = SummaryWriter(str(folder))
        writer.add_hparams(settings, metrics, run_name=f"{number}_{_plain(arm.name)}")
        writer.close()


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
