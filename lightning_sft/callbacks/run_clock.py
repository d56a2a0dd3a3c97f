"""How long a run trains and how long it validates, and so what is left of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer


class RunClock:
    """Keeps the seconds of training and of validations apart.

    Args:
        now: gives the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._mark = self._made = now()
        self._validates = False
        self._training = self._validation = 0.0

    def train(self) -> None:
        """Go on with training; what callbacks did after the last batch of a validation counts as its time."""
        self._advance()
        self._validates = False

    def validate(self) -> None:
        """Begin a validation."""
        self._advance()
        self._validates, self._validation = True, 0.0

    @property
    def training(self) -> float:
        """Seconds of training so far."""
        self._advance()
        return self._training

    @property
    def validation(self) -> float:
        """Seconds of the last validation, or of the one under way; 0 before the first."""
        self._advance()
        return self._validation

    @property
    def total(self) -> float:
        """Seconds since this clock was made."""
        return self._now() - self._made

    def left(self, since: float, steps: int, steps_left: int, validations_left: int) -> float:
        """Return the seconds until a run ends.

        Args:
            since: of `training`, when the first of the steps began.
            steps: optimizer steps since then.
            steps_left: those that follow.
            validations_left: the validations that follow.
        """
        return (self.training - since) / max(steps, 1) * steps_left + self.validation * validations_left

    def _advance(self) -> None:
        now = self._now()
        if self._validates:
            self._validation += now - self._mark
        else:
            self._training += now - self._mark
        self._mark = now


def epochs_done(trainer: Trainer) -> float:
    """Return how many passes over its training rows a fit has made; nan where their number is not known."""
    loader: Any = trainer.train_dataloader
    try:
        batches = len(loader)
    except TypeError:  # of an endless set
        return math.nan
    steps = math.ceil(batches / max(int(trainer.accumulate_grad_batches), 1))
    return trainer.global_step / steps if steps else math.nan


def validations_left(trainer: Trainer, step: int, total: int) -> int:
    """Return how many validations a fit makes between a step and its end, the one at its end included."""
    if not trainer.enable_validation or not sum(trainer.num_val_batches):
        return 0
    every = trainer.val_check_batch
    if every is None or not math.isfinite(every) or step >= total:
        return int(step < total)
    per_step = max(int(trainer.accumulate_grad_batches), 1)
    steps = max(every / per_step, 1.0)
    if trainer.check_val_every_n_epoch and math.isfinite(trainer.num_training_batches):
        in_epoch = max(trainer.num_training_batches // int(every), 1) if every <= trainer.num_training_batches else 1
        steps = trainer.num_training_batches / per_step * trainer.check_val_every_n_epoch / in_epoch
    return max(math.floor(total / steps + 1e-9) - math.floor(step / steps + 1e-9), 1)
