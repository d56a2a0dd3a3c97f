"""The optimizer steps of a trial, through Lightning's own loop, whoever decides when a step is complete."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import Self

from lightning_sft._lightning import TrialLoop
from lightning_sft.errors import UserError
from lightning_sft.sweep.batches import TrialBatches, upcoming
from lightning_sft.sweep.logger import SilentLogger
from lightning_sft.sweep.rates import peak_rate
from lightning_sft.sweep.watch import RateWatch, StepLosses

#: the most micro-batches of an optimizer step of a module that optimizes manually
MOST_BY_HAND = 64


def trial_loop(trainer: Trainer, trial_batches: TrialBatches, callbacks: Sequence[Callback]) -> TrialLoop:
    """Return the loop of a trial, with loggers that swallow what they are given."""
    loggers = [SilentLogger(logger) for logger in trainer.loggers]
    return TrialLoop(trainer, callbacks, loggers, trial_batches.per_epoch, trial_batches.done)


class TrialSteps:
    """Takes optimizer steps; a context manager, in which the trial's loop stands in the place of the fit's.

    Args:
        trainer: in a fit.
        module: its module.
        trial_batches: what to train on, round and round.
        rates: watches the optimizers.
        callbacks: callbacks that take part.
        by_hand: micro-batches of a step of a module that optimizes manually; None where the trainer accumulates.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        trial_batches: TrialBatches,
        rates: RateWatch,
        callbacks: Sequence[Callback],
        by_hand: int | None,
    ) -> None:
        self._trainer = trainer
        self._module = module
        self._trial_batches = trial_batches
        self._rates = rates
        self._losses = StepLosses()
        self._loop = trial_loop(trainer, trial_batches, [self._losses, *callbacks])
        self._by_hand = by_hand
        self._position = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.enter_context(self._loop.entered())
        self._open.enter_context(self._rates.entered())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def take(self) -> float | None:
        """Take one step and return its loss over all ranks, None if it has none."""
        before, complete, count = self._rates.steps, False, 0
        while not complete:
            count += 1
            complete = self.micro_batch()
            if self._by_hand is not None:  # the module decides; it may have learned to wait
                complete = self._rates.steps > before or count == MOST_BY_HAND
        return self.loss()

    def micro_batch(self) -> bool:
        """Train on the next micro-batch and return whether the trainer's accumulation is through with a step."""
        micro_batch = self._trial_batches.batches[self._position % len(self._trial_batches.batches)]
        self._position += 1
        complete = self._loop.micro_batch(micro_batch.fresh(), micro_batch.is_last)
        if micro_batch.is_last:
            self._loop.next_epoch()
        return complete

    def loss(self) -> float | None:
        """Return the loss of the micro-batches since the last step, over all ranks; None if there is none."""
        return self._losses.close(self._trainer, self._module)


def steps_by_hand(
    trainer: Trainer, module: LightningModule, given: TrialBatches | None, callbacks: Sequence[Callback]
) -> int:
    """Return the micro-batches of an optimizer step of a module that optimizes manually, by taking one step.

    The caller puts the module back.

    Raises:
        UserError: it returns no loss, or takes no step.
    """
    name = type(module).__name__
    trial_batches = given or upcoming(trainer, 1, by_hand=MOST_BY_HAND)
    rates = RateWatch(trainer, module, peak_rate(trainer), follow_schedule=True)
    with TrialSteps(trainer, module, trial_batches, rates, callbacks, by_hand=1) as under_way:
        for count in range(1, MOST_BY_HAND + 1):
            under_way.micro_batch()
            if under_way.loss() is None:
                raise UserError(
                    f"{name} optimizes manually, and its training_step returns no loss, so nobody could say how a "
                    "trial went. Return the loss from training_step (detached is enough), also where it is logged."
                )
            if rates.steps:
                return count
    raise UserError(
        f"{name} optimizes manually and took no optimizer step in {MOST_BY_HAND} micro-batches, so trials cannot count "
        f"in steps. Allowed: at most {MOST_BY_HAND} micro-batches a step."
    )
