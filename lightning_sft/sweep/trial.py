"""One trial: a few optimizer steps at one learning rate, from a snapshot, through Lightning's own training path."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import Self

from lightning_sft._lightning import callbacks_of
from lightning_sft.errors import UserError
from lightning_sft.sweep.batches import TrialBatches, upcoming
from lightning_sft.sweep.rates import set_peak_rate, set_rate_now
from lightning_sft.sweep.search import check_divergence
from lightning_sft.sweep.snapshot import Snapshot
from lightning_sft.sweep.steps import TrialSteps, steps_by_hand, trial_loop
from lightning_sft.sweep.watch import RateWatch
from lightning_sft.training.nonfinite import LossWatch
from lightning_sft.training.signals import WATCH, goes_on_with, stop_requested

Outcome = Literal["finished", "stopped", "diverged"]
Values = dict[str, list[float]]


class Observer(Protocol):
    """Reads something of the model between two steps of a trial, without changing it; the same on every rank."""

    def read(self, trainer: Trainer, module: LightningModule) -> Values:
        """Return named lists of numbers."""


@dataclass(frozen=True)
class Trial:
    """What happened at one learning rate.

    Attributes:
        lr: the peak rate (of the first step, where the rate changes from step to step).
        losses: training NLL of each step in nats per token, before its update (the module's own loss in modules that
            do not keep exact totals).
        rates: the first parameter group's rate of each step.
        readings: what the observers read after each step: name -> a list a step.
        outcome: ``finished``; ``stopped``: the search had seen enough; ``diverged``: the loss was no number or rose
            above ``divergence`` times the first.
        seconds: wall time.
    """

    lr: float
    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    readings: dict[str, list[list[float]]] = field(default_factory=dict)
    outcome: Outcome = "finished"
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps taken."""
        return len(self.losses)


class TrialRunner:
    """Runs trials from the state that a fit is in, and leaves the fit as it was.

    A context manager: the snapshot is taken on entering and put back on leaving, whatever happens in between. All
    ranks must run the same trials. Use it in ``on_train_batch_start``, at the first micro-batch of an optimizer step.

    Args:
        trainer: in a fit.
        module: its module.
        steps: optimizer steps of a trial.
        trial_batches: what to train on; None: the rows that the fit will see next.
        callbacks: callbacks that take part in trials; all others are disabled.
        divergence: a trial ends once its loss is above this multiple of its first loss.

    Raises:
        UserError: fewer than one step, a divergence threshold that the first loss itself exceeds, or DeepSpeed.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        steps: int,
        trial_batches: TrialBatches | None = None,
        callbacks: Sequence[Callback] = (),
        divergence: float = 4.0,
    ) -> None:
        if steps < 1:
            raise UserError(f"A trial of {steps} optimizer steps was asked for. Allowed: 1 or more.")
        check_divergence(divergence)
        if not isinstance(trainer, Trainer):
            raise UserError(
                f"A sweep got a Trainer of {type(trainer).__module__.partition('.')[0]}, whose loops are other classes "
                "than those of the package lightning. Import Trainer and LightningModule from lightning.pytorch."
            )
        self.trainer = trainer
        self.module = module
        self.steps = steps
        self.callbacks = tuple(callbacks)
        self.divergence = divergence
        self._given = trial_batches
        self._trial_batches: dict[int, TrialBatches] = {}
        self._by_hand: int | None = None  # micro-batches of a step of a module that optimizes manually
        self._snapshot: Snapshot | None = None
        self._step = 0  # of the fit, which trials count on from

    @property
    def snapshot(self) -> Snapshot:
        """The state that trials start from."""
        if self._snapshot is None:
            raise RuntimeError("A TrialRunner works inside of its `with` block.")
        return self._snapshot

    def __enter__(self) -> Self:
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):
            raise UserError(
                "There is no sweep under DeepSpeed, which keeps weights and optimizer states in an engine of its own: "
                "they could not be put back. Sweep on one device, under ddp or FSDP2, and take the rate along."
            )
        self._of_run = callbacks_of(self.trainer)  # trials have others
        self._snapshot, self._step = Snapshot(self.trainer, self.module, self.callbacks), self.trainer.global_step
        if not self.module.automatic_optimization:
            try:
                self._by_hand = steps_by_hand(self.trainer, self.module, self._given, self.callbacks)
            finally:
                self._snapshot.restore()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.snapshot.restore()
        self._snapshot = None
        self._trial_batches = {}

    def trial_batches(self, order: int = 0) -> TrialBatches:
        """Return the micro-batches of a trial, read once for each ``order`` (0: the fit's own)."""
        if self._given is not None:
            return self._given
        if order not in self._trial_batches:
            self._trial_batches[order] = upcoming(self.trainer, self.steps, order, self._by_hand)
            self.snapshot.restore()  # a loader may have drawn from the global random stream
        return self._trial_batches[order]

    def start(self, observers: Sequence[Observer]) -> Values:
        """Return what the observers read before the first step."""
        try:
            with trial_loop(self.trainer, self.trial_batches(), self.callbacks).entered():
                return _read(observers, self.trainer, self.module)
        finally:
            self.snapshot.restore()

    def run(
        self,
        lr: float,
        observers: Sequence[Observer] = (),
        stop: Callable[[Values], bool] | None = None,
        rates: Sequence[float] | None = None,
        order: int = 0,
        on_step: Callable[[], None] | None = None,
        *,
        last_only: bool = False,
    ) -> Trial:
        """Run a trial from the snapshot, which is put back afterwards.

        Args:
            lr: peak rate; parameter groups and schedule are scaled to it, its shape is kept.
            observers: read after every step.
            stop: gets the readings of a step; True ends the trial. Rank 0 decides.
            rates: a rate for each step, instead of the schedule; as many steps are taken.
            order: 0: the fit's own order of rows and random streams; another number: others, the same for each trial.
            on_step: called after every step, for a progress bar.
            last_only: observers are read after the last step alone.
        """
        since = time.perf_counter()
        trial_batches = self.trial_batches(order)
        trial = Trial(lr=lr)
        try:
            self._prepare(lr, rates, order)
            watch = _Watch(tuple(observers), stop, on_step or (lambda: None), last_only)
            outcome = self._train(trial, trial_batches, watch, rates)
        finally:
            self.snapshot.restore()
        return Trial(lr, trial.losses, trial.rates, trial.readings, outcome, time.perf_counter() - since)

    def _prepare(self, lr: float, rates: Sequence[float] | None, order: int) -> None:
        for parameter in self.module.parameters():
            parameter.grad = None
        if rates is None:
            set_peak_rate(self.trainer, lr)
        watch: object = getattr(self.module, "loss_watch", None)
        if isinstance(watch, LossWatch):
            watch.trial()  # losses that are not finite are a result here
        if order:
            _seed_everything(order, self.trainer.global_rank)

    def _train(
        self,
        trial: Trial,
        trial_batches: TrialBatches,
        watch: _Watch,
        rates: Sequence[float] | None,
    ) -> Outcome:
        trainer = self.trainer
        own = RateWatch(trainer, self.module, trial.lr, follow_schedule=rates is None)
        steps, first = self.steps if rates is None else len(rates), None  # the first loss that there was
        with TrialSteps(trainer, self.module, trial_batches, own, self.callbacks, self._by_hand) as under_way:
            while trial.steps < steps:
                optimizer = trainer.optimizers[0]
                if rates is not None:
                    set_rate_now(optimizer, rates[trial.steps])
                    own.expect()
                rate = float(optimizer.param_groups[0]["lr"])
                loss = under_way.take()
                first = loss if first is None else first
                trial.losses.append(math.nan if first is None else trial.losses[-1] if loss is None else loss)
                trial.rates.append(rate)
                if loss is not None and first is not None and self._diverged(loss, first):
                    return "diverged"
                watch.on_step()
                if trainer.received_sigterm:  # Lightning catches signals where no LastCheckpoint does
                    raise SIGTERMException
                if stop_requested(trainer):
                    speak, go_on = trainer.is_global_zero, goes_on_with(self._of_run)
                    WATCH.stop("in a sweep", speak=speak, lost=not self._step, go_on=go_on)
                if watch.last_only and trial.steps < steps:
                    continue
                values = _read(watch.observers, trainer, self.module)
                for name, numbers in values.items():
                    trial.readings.setdefault(name, []).append(numbers)
                if watch.stop is not None and trainer.strategy.broadcast(watch.stop(values)):
                    return "stopped"
        if first is None:
            raise UserError(
                f"{type(self.module).__name__}.training_step returned no loss in any step of a trial, so nobody could "
                "say how it went. Return the loss, or a dict with 'loss'; rows without a supervised token have none."
            )
        self._require_movement(trial, own)
        return "finished"

    def _require_movement(self, trial: Trial, watch: RateWatch) -> None:
        moved = self.trainer.strategy.reduce(
            torch.tensor(float(self.snapshot.moved()), device=self.module.device), reduce_op="sum"
        )
        if float(moved):
            return
        dtypes = {p.dtype for p in self.module.parameters() if p.requires_grad}
        message = (
            f"No trainable parameter moved in the {trial.steps} optimizer steps of a trial at learning rate "
            f"{trial.lr:.6g}: {watch.explain_rest(dtypes)}."
        )
        if not watch.lost_in(dtypes):
            raise UserError(message)
        rank_zero_warn(message)  # what the run itself would do at this rate

    def _diverged(self, loss: float, first: float) -> bool:
        bad = not math.isfinite(loss) or loss > self.divergence * abs(first)
        return bool(self.trainer.strategy.broadcast(bad))


@dataclass(frozen=True)
class _Watch:
    """What looks on while a trial trains."""

    observers: tuple[Observer, ...]
    stop: Callable[[Values], bool] | None
    on_step: Callable[[], None]
    last_only: bool


def _read(observers: Sequence[Observer], trainer: Trainer, module: LightningModule) -> Values:
    values: Values = {}
    for observer in observers:
        values |= observer.read(trainer, module)
    return values


def _seed_everything(order: int, rank: int) -> None:
    """Seed the random streams for an order of rows; different ranks drop out different units."""
    seed = (order * 1_000_003 + rank) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
