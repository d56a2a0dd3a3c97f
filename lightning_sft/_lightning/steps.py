"""Private attributes of Lightning that decide at which step of the axis a value stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Trainer


def log_at_optimizer_steps(trainer: Trainer, step_outside_of_fit: Callable[[], int]) -> None:
    """Let what is logged after n optimizer steps stand at n: training, validation and callbacks share one axis.

    Lightning's own counter is one behind for training values alone, so that a validation would stand beside the step
    after the one that it follows. A step that is given, or logged as ``step``, still wins. May be called again.

    Args:
        trainer: whose values.
        step_outside_of_fit: the step of the weights that ``validate`` and ``test`` read.
    """
    connector: Any = trainer._logger_connector

    def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
        loop: Any = trainer.fit_loop.epoch_loop
        counted = loop._batches_that_stepped
        loop._batches_that_stepped = trainer.global_step if trainer.state.fn == "fit" else step_outside_of_fit()
        try:
            type(connector).log_metrics(connector, metrics, step)
        finally:
            loop._batches_that_stepped = counted

    connector.log_metrics = log_metrics
