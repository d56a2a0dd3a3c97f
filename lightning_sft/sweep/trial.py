"""One trial: a few optimizer steps at one learning rate, from a snapshot, through Lightning's own training path."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from typing_extensions import Self, override

from lightning_sft._lightning import TrialLoop
from lightning_sft.errors import UserError
from lightning_sft.sweep.batches import TrialBatches, upcoming
from lightning_sft.sweep.rates import set_peak_rate, set_rate_now
from lightning_sft.sweep.search import check_divergence
from lightning_sft.sweep.snapshot import Snapshot

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
        self.trainer = trainer
        self.module = module
        self.steps = steps
        self.callbacks = tuple(callbacks)
        self.divergence = divergence
        self._given = trial_batches
        self._trial_batches: dict[int, TrialBatches] = {}
        self._snapshot: Snapshot | None = None

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
        self._snapshot = Snapshot(self.trainer, self.module, self.callbacks)
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
            self._trial_batches[order] = upcoming(self.trainer, self.steps, order)
            self.snapshot.restore()  # a loader may have drawn from the global random stream
        return self._trial_batches[order]

    def start(self, observers: Sequence[Observer]) -> Values:
        """Return what the observers read before the first step."""
        try:
            with self._loop().entered():
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

    def _loop(self, trial_batches: TrialBatches | None = None, *first: Callback, schedules: bool = True) -> TrialLoop:
        trial_batches = trial_batches or self.trial_batches()
        callbacks = [*first, *self.callbacks]
        return TrialLoop(self.trainer, callbacks, trial_batches.per_epoch, trial_batches.done, schedules=schedules)

    def _prepare(self, lr: float, rates: Sequence[float] | None, order: int) -> None:
        for parameter in self.module.parameters():
            parameter.grad = None
        if rates is None:
            set_peak_rate(self.trainer, lr)
        if order:
            _seed_everything(order, self.trainer.global_rank)

    def _train(
        self,
        trial: Trial,
        trial_batches: TrialBatches,
        watch: _Watch,
        rates: Sequence[float] | None,
    ) -> Outcome:
        trainer, tap = self.trainer, _Losses()
        loop = self._loop(trial_batches, tap, schedules=rates is None)
        steps = self.steps if rates is None else len(rates)
        position = 0
        with loop.entered():
            while trial.steps < steps:
                optimizer = trainer.optimizers[0]
                if rates is not None:
                    set_rate_now(optimizer, rates[trial.steps])
                rate, complete = float(optimizer.param_groups[0]["lr"]), False
                while not complete:
                    micro_batch = trial_batches.batches[position % len(trial_batches.batches)]
                    position += 1
                    complete = loop.micro_batch(micro_batch.fresh(), micro_batch.is_last)
                    if micro_batch.is_last:
                        loop.next_epoch()
                trial.losses.append(tap.close(trainer, self.module, trial.losses))
                trial.rates.append(rate)
                if self._diverged(trial.losses):
                    return "diverged"
                watch.on_step()
                if trainer.received_sigterm:
                    raise SIGTERMException  # as Lightning's own loop does between two steps
                if watch.last_only and trial.steps < steps:
                    continue
                values = _read(watch.observers, trainer, self.module)
                for name, numbers in values.items():
                    trial.readings.setdefault(name, []).append(numbers)
                if watch.stop is not None and trainer.strategy.broadcast(watch.stop(values)):
                    return "stopped"
        return "finished"

    def _diverged(self, losses: Sequence[float]) -> bool:
        bad = not math.isfinite(losses[-1]) or losses[-1] > self.divergence * abs(losses[0])
        return bool(self.trainer.strategy.broadcast(bad))


@dataclass(frozen=True)
class _Watch:
    """What looks on while a trial trains."""

    observers: tuple[Observer, ...]
    stop: Callable[[Values], bool] | None
    on_step: Callable[[], None]
    last_only: bool


class _Losses(Callback):
    """Gathers the loss of an optimizer step from its micro-batches."""

    def __init__(self) -> None:
        self._values: list[Tensor] = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._values.append(loss.detach().to(torch.float64).mean() * trainer.accumulate_grad_batches)

    def close(self, trainer: Trainer, module: LightningModule, before: Sequence[float]) -> float:
        """Return the step's loss over all ranks: exact where the module keeps totals, else the micro-batches' mean."""
        values, self._values = self._values, []
        totals = getattr(module, "step_totals", None)
        if totals:
            # a step without a supervised token has no loss
            return float(totals.mean("nll")) if float(totals["supervised"]) else (before[-1] if before else 0.0)
        own = torch.stack(values).mean() if values else torch.tensor(math.nan, device=module.device)
        mean = trainer.strategy.reduce(own, reduce_op="mean")
        return float(mean)


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
