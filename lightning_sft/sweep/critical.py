"""The critical learning rate: the smallest at which the correct token overtakes its near-synonym within T steps.

Operational: data order, random streams, optimizer and schedule are those of the run, only the rate differs. The notion
is reconstructed from the abstract of arXiv 2606.07559.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from lightning.pytorch import LightningModule, Trainer

from lightning_sft.errors import UserError
from lightning_sft.probes.history import JumpSettings, ProbeHistory, find_jumps
from lightning_sft.sweep.prediction.checks import check_predictable
from lightning_sft.sweep.prediction.session import predict_in_session
from lightning_sft.sweep.rates import peak_rate
from lightning_sft.sweep.results import AT_TARGET, FLIP, CriticalRate, CriticalTrial, ProbeBracket
from lightning_sft.sweep.search import Crossing, check_resolution, crossing, find_crossing, geometric_grid, most_trials
from lightning_sft.sweep.session import Session, SweepSettings
from lightning_sft.sweep.trial import Observer, Trial, Values

Criterion = Literal["rank_flip", "phi", "first_jump", "val_nll"]
#: criterion -> what it reads, and its name in sentences
READS = {
    "rank_flip": ("margin", FLIP),
    "phi": ("phi", "Phi > 0"),
    "first_jump": ("phi", "first jump of Phi"),
    "val_nll": ("val_nll", AT_TARGET),
}


def check_critical(
    criterion: str, low: float, high: float, points: int, steps: int, resolution: float, quantile: float
) -> None:
    """Raise `UserError` for settings that cannot work."""
    if criterion not in get_args(Criterion):
        raise UserError(f"criterion is {criterion!r}. Allowed: {', '.join(get_args(Criterion))}.")
    geometric_grid(low, high, points)
    check_resolution(resolution)
    if steps < 1:
        raise UserError(f"The probes have {steps} steps to cross. Allowed: 1 or more.")
    if not 0 < quantile <= 1:
        raise UserError(f"quantile is {quantile}. Allowed: above 0 (the first probe) to 1 (all); 0.5 is the median.")


class Judge:
    """Decides which probes have crossed, from the readings of a trial.

    Args:
        criterion: what crossing means.
        start: readings before any step.
        quantile: share of the probes that must cross.
        target: the validation NLL to reach, under ``val_nll``.
    """

    def __init__(self, criterion: Criterion, start: Values, quantile: float, target: float | None) -> None:
        self.criterion = criterion
        self.key = READS[criterion][0]
        self.start = start[self.key]
        self.target = target
        self.needed = max(1, math.ceil(quantile * len(self.start) - 1e-9))

    def enough(self, crossed: Sequence[int | None]) -> bool:
        """Return whether enough probes have crossed, given the step at which each did."""
        return sum(step is not None for step in crossed) >= self.needed

    def steps(self, readings: Sequence[Sequence[float]]) -> list[int | None]:
        """Return the first step after which each probe had crossed: 0 before any, None if not yet.

        Args:
            readings: what was read after each step, a list a step.
        """
        columns = zip(self.start, *readings, strict=True)
        return [self._first(list(column)) for column in columns]

    def _first(self, values: list[float]) -> int | None:
        if self.criterion == "first_jump":
            jumps = find_jumps(_history(values), JumpSettings())
            return jumps[0].step if jumps else None
        if self.criterion == "val_nll":
            assert self.target is not None
            return next((i for i, v in enumerate(values) if v <= self.target), None)
        return next((i for i, v in enumerate(values) if v > 0), None)


def find_critical_rate(
    trainer: Trainer,
    module: LightningModule,
    setting: SweepSettings,
    observers: Sequence[Observer],
    names: Sequence[str],
    *,
    low: float,
    high: float,
    points: int = 6,
    resolution: float = 0.02,
    criterion: Criterion = "rank_flip",
    quantile: float = 0.5,
    target: float | None = None,
    predict: bool = False,
    workers: int = 1,
) -> CriticalRate:
    """Search the critical rate and leave no trace of it.

    A trial ends as soon as enough probes have crossed. Every point of the grid is tried, so that rates above the
    crossing at which the probes do not cross (or the loss diverges) are seen; then the bracket is split.

    Args:
        trainer: in a fit.
        module: its module.
        setting: of the sweep; ``steps`` is T.
        observers: what reads the criterion.
        names: of the probes, in the order in which they are read.
        low: lowest rate of the grid.
        high: highest.
        points: of the grid.
        resolution: width of the bracket to reach, as upper / lower - 1.
        criterion: what crossing means.
        quantile: share of the probes that must cross; 0.5 is the median probe.
        target: the validation NLL to reach, under ``val_nll``.
        predict: predict it first, from a few short runs, and write that down; only under ``rank_flip``.
        workers: that share the trials, where ``setting`` names a storage: they split a bracket into one part more than
            they are. One bisects.
    """
    check_critical(criterion, low, high, points, setting.steps, resolution, quantile)
    if predict:
        check_predictable(trainer)
    trials: dict[float, Trial] = {}
    with Session(trainer, module, setting, observers) as session:
        judge = Judge(criterion, session.start(observers), quantile, target)
        if predict:
            predict_in_session(session, observers, names, quantile)

        def make_stop() -> Callable[[Values], bool]:
            seen: list[list[float]] = []

            def stop(values: Values) -> bool:
                seen.append(values[judge.key])
                return judge.enough(judge.steps(seen))

            return stop

        def passes(rates: Sequence[float]) -> dict[float, bool]:
            ran = session.trials(rates, observers, make_stop)
            trials.update(ran)
            return {lr: judge.enough(judge.steps(trial.readings.get(judge.key, []))) for lr, trial in ran.items()}

        if judge.enough(judge.steps([])):
            found = Crossing("already", None, None, {})
        else:
            grid = geometric_grid(low, high, points)
            session.expect(setting.steps * most_trials(grid, resolution, workers))
            found = find_crossing(passes, grid, resolution, workers)
    ordered = dict(sorted(trials.items()))
    return CriticalRate(
        name=setting.name,
        step=trainer.global_step,
        digest=session.digest,
        status=found.status,
        criterion=READS[criterion][1],
        quantile=quantile,
        steps_allowed=setting.steps,
        lower=found.lower,
        upper=found.upper,
        resolution=found.resolution,
        relapses=found.relapses,
        trials=[_row(trial, judge) for trial in ordered.values()],
        probes=_brackets(names, ordered, judge),
        own=peak_rate(trainer),
    )


def _row(trial: Trial, judge: Judge) -> CriticalTrial:
    crossed = judge.steps(trial.readings.get(judge.key, []))
    when = sorted(step for step in crossed if step is not None)
    enough = judge.enough(crossed)
    step = when[judge.needed - 1] if enough else None
    share = len(when) / len(crossed)
    ranks = trial.readings.get("rank")  # none in trials that an earlier release has kept
    first = sum(rank == 1 for rank in ranks[-1]) if ranks else None
    return CriticalTrial(trial.lr, enough, share, step, trial.outcome, trial.steps, trial.seconds, first)


def _brackets(names: Sequence[str], trials: dict[float, Trial], judge: Judge) -> list[ProbeBracket]:
    """Return each probe's own bracket; a trial that was stopped early says nothing of probes that had not crossed."""
    steps = {lr: judge.steps(trial.readings.get(judge.key, [])) for lr, trial in trials.items()}
    result = []
    for i, (name, start) in enumerate(zip(names, judge.start, strict=True)):
        outcomes = {
            lr: crossed[i] is not None
            for lr, crossed in steps.items()
            if crossed[i] is not None or trials[lr].outcome != "stopped"
        }
        found = crossing(outcomes)
        result.append(ProbeBracket(name, start, found.lower, found.upper, not found.relapses))
    return result


def _history(phi: list[float]) -> ProbeHistory:
    unknown: list[float | None] = [None] * len(phi)
    zeros = [0.0] * len(phi)
    return ProbeHistory(list(range(len(phi))), zeros, zeros, zeros, phi, zeros, zeros, unknown, unknown)
