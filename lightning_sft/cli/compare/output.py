"""A report as files: JSON, Markdown, a figure, and rows of TensorBoard's HParams."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from lightning_sft.compare.report import Report
from lightning_sft.compare.words import markdown, sentence, to_json_text
from lightning_sft.figures.comparison import forest_figure
from lightning_sft.files import replacing, write_text


def write(report: Report, folder: Path) -> None:
    """Write ``report.json``, ``report.md``, ``forest.png`` and the folder ``tensorboard``."""
    write_text(folder / "report.json", to_json_text(report))
    write_text(folder / "report.md", f"{sentence(report)}\n\n{markdown(report)}\n")
    with replacing(folder / "forest.png") as partial:
        forest_figure(report).savefig(partial, format="png", dpi=150)
    write_hparams(report, folder / "tensorboard")


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
