"""Prediction inside a fit: short runs through Lightning's training loop, recorded before the sweep begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lightning_sft.sweep.fingerprint import fingerprint
from lightning_sft.sweep.prediction.estimate import Target
from lightning_sft.sweep.prediction.gains import step_gains
from lightning_sft.sweep.prediction.model import first_beta
from lightning_sft.sweep.prediction.predict import LONGEST_SHORT_RUN, START, make_target, predict_set, settings_inputs
from lightning_sft.sweep.prediction.record import CriticalLRPrediction
from lightning_sft.sweep.prediction.replay import Replay
from lightning_sft.sweep.prediction.schedule import schedule_shares
from lightning_sft.sweep.session import Session
from lightning_sft.sweep.store import FOLDER
from lightning_sft.sweep.trial import Observer

WHOLE_RUN = (
    "the rows differ from step to step, so that short runs only say where to look, and the prediction follows one to "
    "three runs of all steps"
)


def predict_in_session(
    session: Session, observers: Sequence[Observer], names: Sequence[str], quantile: float = 0.5
) -> CriticalLRPrediction:
    """Predict the critical rate of a fit, and write it to ``<run folder>/sweep/<name>.prediction.<hash>.json``.

    The optimizer, the order of rows, dropout and accumulation are the fit's own; the schedule counts by the sum of its
    rates. All ranks must call this.

    Args:
        session: under way.
        observers: one of them reads ``margin``.
        names: of the probes, in the order in which they are read.
        quantile: share of the probes that must have flipped.
    """
    trainer, setting = session.trainer, session.setting
    start = session.start(observers)["margin"]  # rank 0's for all: the next run is chosen by it

    def run(rates: Sequence[float]) -> list[list[float]]:
        if not rates:
            return [start]
        trial = session.trial(rates[0], observers, rates=rates, variant=f"prediction of {len(rates)} steps")
        seen = trial.readings.get("margin", [])
        lost = [math.nan] * len(start)  # a trial that diverged ends early
        return [start, *seen, *(lost for _ in range(len(rates) - len(seen)))]

    shares = schedule_shares(trainer, session.runner.snapshot, setting.steps)
    gains = step_gains(trainer.optimizers[0], max(setting.steps, LONGEST_SHORT_RUN), trainer.global_step)
    target = make_target(setting.steps, first_beta(trainer.optimizers[0]), shares, gains)
    whole_run = None if _one_batch(session) else _WholeRun(session, observers, start, target)
    whole, single = predict_set(run, names, target, quantile, START, whole_run)
    if whole_run is not None:
        whole = replace(whole, steps=whole.steps + whole_run.steps)
    inputs = {"run": session.digest, "probes": list(names), **settings_inputs(target, True, quantile, START)}
    prediction = CriticalLRPrediction(single, whole, inputs)
    if whole_run is not None:
        prediction.notes.append(WHOLE_RUN)
    if setting.folder is not None and trainer.is_global_zero:
        _write_once(prediction, setting.folder / FOLDER / f"{setting.name}.prediction.{prediction.hash[:12]}.json")
    rank_zero_info(f"Prediction, before the sweep {setting.name}:\n{prediction}\n")
    return prediction


class _WholeRun:
    """Trials of all steps, on the rows and under the schedule of the fit; see `WholeRun`."""

    def __init__(self, session: Session, observers: Sequence[Observer], start: list[float], target: Target) -> None:
        self._session, self._observers, self._start, self._target = session, observers, start, target
        self.steps = 0

    def __call__(self, rate: float, way: Sequence[float]) -> Replay:
        trial = self._session.trial(rate, self._observers)
        self.steps += trial.steps
        seen = trial.readings.get("margin", [])
        if len(seen) < len(self._target.shares):  # it diverged
            seen = [*seen, [math.nan] * len(self._start)]
        way = self._target.way[: len(seen) + 1]
        return Replay(rate, way, [self._start, *seen], way)


def _one_batch(session: Session) -> bool:
    """Return whether every micro-batch of the trials is the same."""
    return len({fingerprint(b.batch) for b in session.runner.trial_batches().batches}) == 1


def _write_once(prediction: CriticalLRPrediction, path: Path) -> None:
    """Write the prediction, unless an interrupted sweep that goes on here has written it already."""
    if not path.exists():
        prediction.write(path)
