"""The range test (Smith, arXiv 1506.01186): one trial whose rate rises from step to step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from lightning.pytorch import LightningModule, Trainer

from lightning_sft.errors import UserError
from lightning_sft.sweep.observers import HeldOutObserver
from lightning_sft.sweep.results import RangeTest
from lightning_sft.sweep.search import find_crossing, geometric_grid, most_trials
from lightning_sft.sweep.session import Session, SweepSettings
from lightning_sft.sweep.suggest import smoothed, suggest
from lightning_sft.sweep.trial import Observer, Values

Reads = Literal["train", "val"]
Choice = Literal["steepest", "minimum_tenth", "valley", "edge"]
EDGE_POINTS, EDGE_RESOLUTION = 5, 0.02


def check_range(low: float, high: float, steps: int, reads: str, choice: str, smoothing: float) -> None:
    """Raise `UserError` for settings that cannot work."""
    geometric_grid(low, high, 2)
    if steps < 4:
        raise UserError(f"The range test has {steps} steps. Allowed: 4 or more; 100 gives a clear curve.")
    for name, value, allowed in (("reads", reads, get_args(Reads)), ("choice", choice, get_args(Choice))):
        if value not in allowed:
            raise UserError(f"{name} is {value!r}. Allowed: {', '.join(allowed)}.")
    if not 0 <= smoothing < 1:
        raise UserError(f"smoothing is {smoothing}. Allowed: 0 (none) to below 1.")


def range_test(
    trainer: Trainer,
    module: LightningModule,
    setting: SweepSettings,
    *,
    low: float,
    high: float,
    reads: Reads = "train",
    val_batches: int | None = None,
    smoothing: float = 0.9,
    choice: Choice = "valley",
    edge_steps: int = 0,
    observers: Sequence[Observer] = (),
) -> RangeTest:
    """Run a range test and leave no trace of it.

    The training loss belongs to the batch of its step, so it is read one step later than the rate it answers to, and
    smoothed. The validation NLL is read after every step, on the same rows, and needs no smoothing.

    Args:
        trainer: in a fit.
        module: its module.
        setting: of the sweep; ``steps`` is the number of rates.
        low: first rate.
        high: last rate.
        reads: ``"train"``: the training loss; ``"val"``: the validation NLL.
        val_batches: the most validation batches of a rank; None is all.
        smoothing: of the training loss, 0 to 1.
        choice: which suggestion to take.
        edge_steps: 0, or the steps of trials at a constant rate that bisect the edge to 2%. A rising rate crosses the
            edge unnoticed where training has meanwhile flattened what would diverge; trials from the snapshot do not.
        observers: further ones, read after every step of the rising rate.
    """
    check_range(low, high, setting.steps, reads, choice, smoothing)
    rates = geometric_grid(low, high, setting.steps)
    observers = [*([HeldOutObserver(trainer, val_batches)] if reads == "val" else []), *observers]
    first: list[float] = []

    def too_high(values: Values) -> bool:
        loss = values["val_nll"][0]
        first.append(loss)
        return not math.isfinite(loss) or loss > setting.divergence * abs(first[0])

    with Session(trainer, module, setting, observers) as session:
        session.expect(setting.steps)
        trial = session.trial(low, observers, too_high if reads == "val" else None, rates)
        edge = _edge(session, rates[: trial.steps], edge_steps) if edge_steps else None
    if reads == "val":
        losses = [values[0] for values in trial.readings.get("val_nll", [])]
        losses += [math.nan] * (trial.outcome == "diverged")
    else:
        losses = trial.losses[1:]
    used, beta = rates[: len(losses)], smoothing if reads == "train" else 0.0
    found = suggest(used, losses, beta)
    found = replace(found, edge=edge) if edge_steps else found
    what = "training loss" if reads == "train" else "validation NLL"
    curve = smoothed(losses, beta)
    return RangeTest(setting.name, trainer.global_step, session.digest, what, used, losses, curve, found, choice)


def _edge(session: Session, rates: list[float], steps: int) -> float | None:
    """Return the smallest constant rate at which the loss ends above its start, to 2%; None if there is none."""

    def diverges(lr: float) -> bool:
        trial = session.trial(lr, rates=[lr] * steps, variant="constant")
        return trial.outcome == "diverged" or trial.losses[-1] > trial.losses[0]

    grid = geometric_grid(rates[0], rates[-1], EDGE_POINTS)
    session.expect(steps * most_trials(grid, EDGE_RESOLUTION))
    found = find_crossing(lambda some: {rate: diverges(rate) for rate in some}, grid, EDGE_RESOLUTION)
    return found.upper if found.status == "found" else None
