"""How far one run of a comparison is, beside the line that the comparison prints at its end."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_sft.progress import progress


class RunSteps(Callback):
    """Shows the optimizer steps of a run, then the batches by which it is judged, each with a total.

    Args:
        what: names the run.
    """

    only_reads = True

    def __init__(self, what: str) -> None:
        self.what = what
        self._open = ExitStack()
        self._advance: Any = None
        self._step = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        self._step = trainer.global_step
        total = None if steps == float("inf") else int(steps) - self._step
        self._begin(self.what, total, "steps")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._advance is not None and trainer.global_step > self._step:
            self._advance(trainer.global_step - self._step)
            self._step = trainer.global_step

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # of a validation on the way, the steps go on being counted
        if not trainer.sanity_checking and self._is_last(trainer):
            batches = sum(trainer.num_val_batches)
            total = int(batches) if math.isfinite(batches) else None
            self._begin(f"{self.what}, validation", total, "batches")

    @override
    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._advance is not None and not trainer.sanity_checking and self._is_last(trainer):
            self._advance(1)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def _is_last(self, trainer: Trainer) -> bool:
        steps = trainer.estimated_stepping_batches
        return trainer.global_step >= steps

    def _begin(self, what: str, total: int | None, unit: str) -> None:
        self._end()
        self._advance = self._open.enter_context(progress(what, total, unit))

    def _end(self) -> None:
        self._advance = None
        self._open.close()
