"""The short runs of a forecast, by trials that leave no trace."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_sft.sweep.forecast.law import Stretch
from lightning_sft.sweep.prediction.gains import rates_of_progress, step_gains
from lightning_sft.sweep.prediction.schedule import schedule_shares
from lightning_sft.sweep.rates import peak_rate
from lightning_sft.sweep.session import Session
from lightning_sft.sweep.trial import Observer

#: a stretch went too far if the mean loss of its last quarter is above this multiple of that of the run's own steps
MOST_RISE = 1.15
#: shares of the way ahead that large steps are tried on, one after the other
REACHES = (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Stretches:
    """What a forecast is made from.

    Attributes:
        own: at the run's own rates.
        coarse: in large steps.
        fine: in twice as many.
        way: the run's progress before its next step and after each to come, (steps + 1,).
        peak: its peak rate.
        steps: optimizer steps that were taken for it.
    """

    own: Stretch
    coarse: Stretch
    fine: Stretch
    way: list[float]
    peak: float
    steps: int


def take_stretches(session: Session, observers: Sequence[Observer], start: list[float], ahead: int) -> Stretches:
    """Take the short runs: half of the session's steps at the run's own rates, then half and all of them in large ones.

    Where the loss rises in large steps, they are tried on half of the way, then on a quarter.

    Args:
        session: under way; its ``steps`` are those of the longest stretch.
        observers: one of them reads ``margin``.
        start: the margins before any step.
        ahead: optimizer steps that the run has before it.
    """
    trainer, fine_steps = session.trainer, session.setting.steps
    few = max(fine_steps // 2, 1)
    gains = step_gains(trainer.optimizers[0], max(ahead, fine_steps), trainer.global_step)
    peak = peak_rate(trainer)
    shares = schedule_shares(trainer, session.runner.snapshot, ahead)
    way = [0.0]
    for share, gain in zip(shares, gains, strict=False):
        way.append(way[-1] + peak * share * gain)
    taken = 0

    def stretch(name: str, rates: Sequence[float], progress: list[float]) -> Stretch:
        nonlocal taken
        trial = session.trial(peak, observers, rates=rates, variant=name)
        taken += trial.steps
        gaps = [start, *trial.readings.get("margin", [])]
        return Stretch(progress[: len(gaps)], gaps, trial.losses, trial.outcome == "finished" and len(gaps) > few)

    session.expect(2 * few + fine_steps)
    own = stretch("own rates", [peak * share for share in shares[:few]], way[: few + 1])
    coarse = fine = own
    for reach in REACHES:
        far = reach * way[-1]
        if far <= own.progress[-1]:
            break
        fine, coarse = (
            _sane(stretch(f"{n} steps to {reach:g}", rates_of_progress([far / n] * n, gains), _even(far, n)), own)
            for n in (fine_steps, few)
        )
        if fine.complete and coarse.complete:
            break
        session.expect(few + fine_steps)  # once more, on less of the way
    return Stretches(own, coarse, fine, way, peak, taken)


def _even(end: float, steps: int) -> list[float]:
    return [end * i / steps for i in range(steps + 1)]


def _sane(stretch: Stretch, own: Stretch) -> Stretch:
    """Return a stretch as it is, or marked as incomplete where its loss rose."""
    quarter = max(len(stretch.losses) // 4, 1)
    level = statistics.fmean(own.losses) if own.losses else math.inf
    late = statistics.fmean(stretch.losses[-quarter:]) if stretch.losses else math.inf
    rose = not math.isfinite(late) or late > MOST_RISE * level
    return Stretch(stretch.progress, stretch.gaps, stretch.losses, stretch.complete and not rose)
