"""Compare objectives from one snapshot: equal numbers of trials, each at its own best learning rate.

Gradients of different objectives differ in scale by orders of magnitude, so one common learning rate would compare
rates, not objectives.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_sft.compare.keys import Score, score_of
from lightning_sft.compare.plan import EXACT, SHORT
from lightning_sft.compare.rates import Progress, RateSearch, search
from lightning_sft.compare.report import ArmReport, Report, read_all
from lightning_sft.compare.words import markdown, sentence
from lightning_sft.errors import UserError
from lightning_sft.objectives import Objective
from lightning_sft.sweep.parts import PartsObserver
from lightning_sft.sweep.results import SweepResult
from lightning_sft.sweep.session import Session, SweepSettings
from lightning_sft.sweep.trial import Trial

#: what selects rates: log keys, and the names of earlier versions
READINGS = ("val/exact_match", "val/nll", "val/mean_p", "val/token_accuracy")
RunTrial = Callable[[str, float, int], Trial]


@dataclass(frozen=True)
class Comparison(SweepResult):
    """Objectives from one snapshot under one budget.

    Attributes:
        budget: optimizer steps of every trial.
        report: what was found; its arms are the objectives, and its replicates the seeds.
    """

    budget: int
    report: Report

    @override
    def rows(self) -> list[dict[str, Any]]:
        table = []
        for arm in self.report.arms:
            cells: dict[str, Any] = {"objective": arm.name, "lr": arm.rate, "at_edge": arm.at_edge}
            for key in self.report.keys:
                found = arm.readings[key].mean
                cells |= {key: found.mean, f"{key}_low": found.low, f"{key}_high": found.high}
            counts = {"trials": len(arm.search), "seeds": self.report.replicates, "diverged": arm.diverged}
            table.append({**cells, **counts})
        return table

    @override
    def scalars(self) -> dict[str, float]:
        return {"objectives": float(len(self.report.arms))}

    @override
    def text(self) -> str:
        return f"{markdown(self.report)}\n\n{sentence(self.report)} Each trial took {self.budget} steps."


def check_comparison(objectives: Sequence[Objective], setting: RateSearch, seeds: int, select: str) -> None:
    """Raise `UserError` for settings that cannot work."""
    names = [repr(o) for o in objectives]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"The objectives to compare are {names}. Allowed: two or more, all different.")
    if setting.points == 0 or seeds < 1:
        raise UserError(
            f"points is {setting.points} and seeds is {seeds}. Allowed: points of 3 or more, and seeds of 1 or more "
            "(2 for an interval)."
        )
    if select != "auto" and score_of(select).key not in READINGS:
        raise UserError(f"select is {select!r}. Allowed: auto, {', '.join(READINGS)}.")


def compare_objectives(
    trainer: Trainer,
    module: LightningModule,
    setting: SweepSettings,
    objectives: Sequence[Objective],
    rates: RateSearch,
    *,
    seeds: int = 3,
    select: str = "auto",
    val_batches: int | None = None,
) -> Comparison:
    """Compare objectives and leave no trace.

    The held-out rows are dealt out: one part selects rates, and every seed is judged by a part of its own.

    Args:
        trainer: in a fit.
        module: a module with ``use_objective``, such as SFTModule.
        setting: of the sweep; ``steps`` is the budget.
        objectives: to compare; the first is what the others are compared with.
        rates: how each one's rate is searched for.
        seeds: other orders of rows to train the best rate with.
        select: the log key that chooses a rate; ``auto``: exact match where answers are short, else the NLL.
        val_batches: the most validation batches of a rank; None is all.

    Raises:
        UserError: the module cannot change its objective, or there is too little validation data.
    """
    check_comparison(objectives, rates, seeds, select)
    if not hasattr(module, "use_objective"):
        raise UserError(
            f"{type(module).__name__} cannot change its objective: it has no method use_objective. Objectives are "
            "compared in a lightning_sft.SFTModule, or a module of your own with that method."
        )
    observer = PartsObserver(trainer, module, seeds + 1, val_batches)
    with Session(trainer, module, setting, [observer]) as session:
        start = {key: statistics.fmean(values[1:]) for key, values in session.start([observer]).items()}
        if select != "auto" and score_of(select).key not in start:
            raise UserError(
                f"select is {select!r}, which the held-out rows do not give. They give: {', '.join(start)}."
            )
        prepared = {repr(o): _prepared(module, o, session) for o in objectives}

        def trial(name: str, lr: float, order: int) -> Trial:
            objective = prepared[name]
            with _swapped(module, copy.deepcopy(objective)):
                return session.trial(lr, [observer], order=order, variant=name, depends=objective, last_only=True)

        # a search that goes on takes more
        session.expect(setting.steps * len(prepared) * (max(1, rates.points) + seeds))
        found = _search(list(prepared), rates, select, trial, trainer.strategy.broadcast(observer.answer_tokens))
        judged = {name: [trial(name, found.progress.best[name], i) for i in range(1, seeds + 1)] for name in prepared}
        report = _report(setting.name, session.digest, found, judged, start)
    return Comparison(setting.name, trainer.global_step, session.digest, setting.steps, report)


@dataclass(frozen=True)
class _Found:
    """What the search for rates has given."""

    score: Score
    progress: Progress
    trials: dict[str, dict[float, Trial]]
    by_nll: bool


def _search(names: list[str], rates: RateSearch, select: str, trial: RunTrial, answer_tokens: float) -> _Found:
    score = score_of("val/nll" if select == "auto" else select)
    trials: dict[str, dict[float, Trial]] = {name: {} for name in names}
    grid = search(rates, names[:1], {names[0]: {}}).wanted[names[0]]
    trials[names[0]] = {lr: trial(names[0], lr, 0) for lr in grid}
    if select == "auto" and answer_tokens <= SHORT:
        matches = [_reading(t, EXACT, 0) for t in trials[names[0]].values()]
        score = score_of(EXACT) if any(m > 0 for m in matches) else score
    by_nll = select == "auto" and score.key == "val/nll"
    if by_nll:
        rank_zero_warn(_BY_NLL)
    while True:
        found = {name: {lr: _value(t, score) for lr, t in own.items()} for name, own in trials.items()}
        progress = search(rates, names, found)
        if not progress.wanted:
            return _Found(score, progress, trials, by_nll)
        for name, wanted in progress.wanted.items():
            for lr in wanted:
                trials[name][lr] = trial(name, lr, 0)


_BY_NLL = (
    "Rates are selected by val/nll, NLL's own objective, which favours NLL: answers are long, or no trial gets one "
    "right. Set select to decide by what you want from the model."
)


def _reading(trial: Trial, key: str, part: int) -> float:
    values = trial.readings.get(key)
    return values[-1][part] if values and trial.outcome != "diverged" else math.nan


def _value(trial: Trial, score: Score) -> tuple[float, ...]:
    """Return what a search maximises: the score on the part that selects, then the NLL where scores are equal."""
    value, nll = _reading(trial, score.key, 0), _reading(trial, "val/nll", 0)
    if not math.isfinite(value):
        return (-math.inf, -math.inf)
    return (value if score.higher else -value, -nll if math.isfinite(nll) else -math.inf)


def _report(name: str, digest: str, found: _Found, judged: dict[str, list[Trial]], start: dict[str, float]) -> Report:
    keys = [key for key in READINGS if key in start]
    values = {
        key: {arm: [_reading(t, key, 1 + i) for i, t in enumerate(own)] for arm, own in judged.items()} for key in keys
    }
    readings = read_all(values, found.score)
    arms = []
    for arm, own in judged.items():
        search = []
        for lr, trial in sorted(found.trials[arm].items()):
            value = _reading(trial, found.score.key, 0)
            search.append((lr, value if math.isfinite(value) else None))
        diverged = sum(t.outcome == "diverged" for t in own)
        edge = found.progress.at_edge.get(arm)
        arms.append(ArmReport(arm, found.progress.best[arm], edge, search, diverged, 0, None, readings[arm], [], []))
    every = [*(t for own in judged.values() for t in own), *(t for own in found.trials.values() for t in own.values())]
    return Report(
        name=name,
        digest=digest,
        replicates=len(next(iter(judged.values()))),
        score=found.score,
        start=start,
        arms=arms,
        left_out={},
        wall_seconds=sum(trial.seconds for trial in every),
        notes=[_BY_NLL] if found.by_nll else [],
        replicate="order of training rows, dropout, and a part of the held-out rows",
    )


def _prepared(module: Any, objective: Objective, session: Session) -> Objective:
    """Return the objective as it would be at the start of a run from here: prepared, and seeded if it must be."""
    before = module.objective
    try:
        module.use_objective(copy.deepcopy(objective))
        prepared = module.objective
    finally:
        module.objective = before
        session.runner.snapshot.restore()
    assert isinstance(prepared, Objective)
    return prepared


@contextmanager
def _swapped(module: Any, objective: Objective) -> Iterator[None]:
    before = module.objective
    module.objective = objective
    try:
        yield
    finally:
        module.objective = before
