"""RunReport: a page about the fit, written when it is over."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lightning_sft.checkpoints.runs import run_folder
from lightning_sft.places import near
from lightning_sft.report.page import write_report
from lightning_sft.report.run import open_runs


class RunReport(Callback):
    """Write ``report.html`` into the run's folder at the end of fit, as ``lightning report`` does.

    The page is made of what the loggers wrote (TensorBoard, CSV) and needs no network to be read. ``lightning fit
    --report`` adds this callback. A page that cannot be made is a warning, and never the end of a fit.

    Args:
        path: the file; None is ``report.html`` in the run's folder.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fast: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        folder = run_folder(trainer)
        if trainer.barebones or fast or not trainer.is_global_zero:
            return
        if folder is None:
            rank_zero_warn("RunReport writes nothing: the run has no logger. Use TensorBoard's or the CSV logger.")
            return
        for logger in trainer.loggers:
            logger.save()
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        try:
            written = write_report(open_runs([str(folder)]), Path(self.path or folder / "report.html").expanduser())
        except Exception as error:  # the fit is done, and worth more than its report
            rank_zero_warn(f"The report could not be written ({type(error).__name__}: {error}).")
            return
        rank_zero_info(f"Report: {near(written)}")
