"""DataReport: counts of used, cut and rejected rows, logged before the first step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from lightning_sft.figures.loggers import log_text


class DataReport(Callback):
    """Log the data module's report at the start of training.

    For each set: a text table of rows used, rejected, dropped, truncated and leaked with the share of trained tokens
    (``data/report``), the scalars ``data/<set>_trained_share`` and ``data/<set>_rows``, and, in TensorBoard, the
    histograms ``zz_data/<set>_row_tokens`` and ``zz_data/<set>_trained_tokens``, whose names put them behind the curves
    that people look at. It needs a data module with ``report``,
    such as [`SFTDataModule`][lightning_sft.data.SFTDataModule]; with others it does nothing.
    """

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reports: dict[str, Any] = getattr(getattr(trainer, "datamodule", None), "report", {})
        if not trainer.is_global_zero or not reports:
            return
        step = trainer.global_step
        scalars: dict[str, float] = {}
        rows = []
        for name, report in reports.items():
            scalars[f"data/{name}_rows"] = float(report.rows)
            scalars[f"data/{name}_trained_share"] = float(report.trained_share)
            rows += [f"| {name} | {what} | {round(value, 4):,} |" for what, value in report.counts().items()]
        log_text(trainer, "data/report", "\n".join(["| set | what | value |", "| --- | --- | --- |", *rows]), step)
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=step)
            if isinstance(logger, TensorBoardLogger):
                for name, report in reports.items():
                    logger.experiment.add_histogram(f"zz_data/{name}_row_tokens", report.lengths, step)
                    logger.experiment.add_histogram(f"zz_data/{name}_trained_tokens", report.trained, step)
