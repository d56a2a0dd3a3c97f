"""Log texts and figures to the loggers that support them; other loggers are skipped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_text(trainer: Trainer, tag: str, text: str, step: int) -> None:
    """Log a Markdown text on the first rank; call it outside collectives."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, text, step)
        elif hasattr(logger, "log_text"):  # WandbLogger
            logger.log_text(tag, columns=["text"], data=[[text]], step=step)


def log_figure(trainer: Trainer, tag: str, figure: Figure, step: int) -> None:
    """Log a matplotlib figure on the first rank and close it; call it outside collectives."""
    import matplotlib.pyplot as plt

    if trainer.is_global_zero:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(tag, figure, step)
            elif hasattr(logger, "log_image"):  # WandbLogger
                logger.log_image(tag, [figure], step=step)
    plt.close(figure)
