"""Compare objectives from one snapshot: equal numbers of trials, each at its own best learning rate.

Gradients of different objectives differ in scale by orders of magnitude, so one common learning rate would compare
rates, not objectives.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.objectives import Objective
from lightning_sft.sweep.intervals import Interval, interval
from lightning_sft.sweep.observers import HeldOutObserver
from lightning_sft.sweep.results import SweepResult
from lightning_sft.sweep.search import geometric_grid
from lightning_sft.sweep.session import Session, SweepSettings
from lightning_sft.sweep.trial import Trial

Select = Literal["val_nll", "val_mean_p", "val_accuracy"]
READINGS = get_args(Select)


@dataclass(frozen=True)
class ObjectiveRow:
    """One objective of a comparison.

    Attributes:
        objective: its description.
        lr: the best of its rates.
        at_edge: the best rate is the lowest or highest of the range: a better one may lie outside.
        search: (rate, reading that is selected by) of every trial of its search; None where the trial diverged.
        val_nll: at the best rate, over the seeds.
        val_mean_p: likewise.
        val_accuracy: likewise.
        diverged: seeds whose trial diverged at that rate; they are not in the intervals.
    """

    objective: str
    lr: float
    at_edge: bool
    search: list[tuple[float, float | None]]
    val_nll: Interval
    val_mean_p: Interval
    val_accuracy: Interval
    diverged: int


@dataclass(frozen=True)
class Comparison(SweepResult):
    """Objectives from one snapshot under one budget.

    Attributes:
        budget: optimizer steps of every trial.
        seeds: orders of rows and random streams that the best rate was trained with.
        select: the reading that chose each rate.
        start: readings before any step.
        objectives: a row each, in the order given.
    """

    budget: int
    seeds: int
    select: str
    start: dict[str, float]
    objectives: list[ObjectiveRow]

    @override
    def rows(self) -> list[dict[str, Any]]:
        table = []
        for row in self.objectives:
            cells: dict[str, Any] = {"objective": row.objective, "lr": row.lr, "at_edge": row.at_edge}
            for reading in READINGS:
                found: Interval = getattr(row, reading)
                cells |= {reading: found.mean, f"{reading}_low": found.low, f"{reading}_high": found.high}
            table.append({**cells, "trials": len(row.search), "seeds": self.seeds, "diverged": row.diverged})
        return table

    @override
    def scalars(self) -> dict[str, float]:
        return {"objectives": float(len(self.objectives))}

    @override
    def text(self) -> str:
        head = ["objective", "learning rate", "NLL", "mean p", "token accuracy"]
        lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        first = ["(before)", "", *(f"{self.start[r]:.4f}" for r in READINGS)]
        lines.append(f"| {' | '.join(first)} |")
        for row in self.objectives:
            rate = f"{row.lr:.4g}{' (edge of the range)' if row.at_edge else ''}"
            lines.append(f"| {' | '.join([row.objective, rate, *(str(getattr(row, r)) for r in READINGS)])} |")
        trials = len(self.objectives[0].search)
        return "\n".join(
            [
                *lines,
                "",
                f"Held-out readings after {self.budget} steps from one snapshot. Each objective has {trials} trials to "
                f"find its own rate by {self.select}, then {self.seeds} seeds at that rate (other orders of rows, "
                "other dropout). Brackets: 95% t-intervals over the seeds; they do not cover the choice of held-out "
                "rows.",
            ]
        )


def check_comparison(objectives: Sequence[Objective], points: int, refine: int, seeds: int, select: str) -> None:
    """Raise `UserError` for settings that cannot work."""
    names = [repr(o) for o in objectives]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"The objectives to compare are {names}. Allowed: two or more, all different.")
    if points < 3 or refine < 0 or seeds < 1:
        raise UserError(
            f"points is {points}, refine is {refine}, seeds is {seeds}. Allowed: points of 3 or more, refine of 0 or "
            "more, seeds of 1 or more (2 for an interval)."
        )
    if select not in READINGS:
        raise UserError(f"select is {select!r}. Allowed: {', '.join(READINGS)}.")


def compare_objectives(
    trainer: Trainer,
    module: LightningModule,
    setting: SweepSettings,
    objectives: Sequence[Objective],
    *,
    low: float,
    high: float,
    points: int = 5,
    refine: int = 1,
    seeds: int = 3,
    select: Select = "val_nll",
    val_batches: int | None = None,
) -> Comparison:
    """Compare objectives and leave no trace.

    Args:
        trainer: in a fit.
        module: a module with ``use_objective``, such as SFTModule.
        setting: of the sweep; ``steps`` is the budget.
        objectives: to compare.
        low: lowest rate of the grid.
        high: highest.
        points: rates of the grid.
        refine: rounds of two further rates, on both sides of the best so far, each halving the distance.
        seeds: other orders of rows to train the best rate with.
        select: the reading that chooses a rate.
        val_batches: the most validation batches of a rank; None is all.

    Raises:
        UserError: the module cannot change its objective, or there is no validation data.
    """
    check_comparison(objectives, points, refine, seeds, select)
    if not hasattr(module, "use_objective"):
        raise UserError(
            f"{type(module).__name__} cannot change its objective: it has no method use_objective. Objectives are "
            "compared in a lightning_sft.SFTModule, or a module of your own with that method."
        )
    grid = geometric_grid(low, high, points)
    observer = HeldOutObserver(trainer, val_batches)
    rows = []
    with Session(trainer, module, setting, [observer]) as session:
        start = {name: values[0] for name, values in session.start([observer]).items()}
        if set(READINGS) - set(start):
            raise UserError(f"{type(module).__name__}.validation_step returns no token scores to compare by.")
        for objective in objectives:
            prepared = _prepared(module, objective, session)

            def trial(lr: float, order: int = 0, objective: Objective = prepared) -> Trial:
                name = repr(objective)
                with _swapped(module, copy.deepcopy(objective)):
                    return session.trial(lr, [observer], order=order, variant=name, depends=objective, last_only=True)

            rows.append(_row(repr(objective), trial, grid, refine, seeds, select))
    return Comparison(setting.name, trainer.global_step, session.digest, setting.steps, seeds, select, start, rows)


def _row(name: str, trial: Any, grid: list[float], refine: int, seeds: int, select: Select) -> ObjectiveRow:
    found = {lr: _score(trial(lr), select) for lr in grid}
    ratio = grid[1] / grid[0]
    for _ in range(refine):
        ratio = math.sqrt(ratio)
        best = max(found, key=found.__getitem__)
        for lr in (best / ratio, best * ratio):
            lr = float(f"{lr:.12g}")
            found[lr] = _score(trial(lr), select)
    best = max(found, key=found.__getitem__)
    repeats = [trial(best, order) for order in range(1, seeds + 1)]
    finished = [t for t in repeats if t.outcome != "diverged"]
    readings = {r: interval([t.readings[r][-1][0] for t in finished] or [math.nan]) for r in READINGS}
    ordered = sorted(found)
    sign = -1 if select == "val_nll" else 1
    search = [(lr, sign * found[lr] if math.isfinite(found[lr]) else None) for lr in ordered]
    return ObjectiveRow(
        name, best, best in (ordered[0], ordered[-1]), search, **readings, diverged=len(repeats) - len(finished)
    )


def _score(trial: Trial, select: Select) -> float:
    """Return what a search maximises."""
    values = trial.readings.get(select)
    if trial.outcome == "diverged" or not values or not math.isfinite(values[-1][0]):
        return -math.inf
    return -values[-1][0] if select == "val_nll" else values[-1][0]


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
