"""Simulated cells of the continuum study: no run, only numbers."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lightning_sft.compare.result import Point, RunResult
from studies.cells import Cell
from studies.continuum.design import CONTROLLED, LEVELS, SAMPLED, SCORE, Block, Stage

#: block, arm -> true exact match
World = Callable[[Block, str], float]


def result(exact: float, outcome: str = "finished", **more: float) -> RunResult:
    """A run with two looks at its curve and a reading at its end."""
    last = {SCORE: exact, SAMPLED: exact / 2, CONTROLLED: exact / 2, "val/curve/exact_match": exact, **more}
    curve = (Point(10, 100, 1.0, {"val/curve/exact_match": exact / 2}), Point(40, 400, 4.0, last))
    return RunResult("", "", outcome, curve=curve, steps=40, tokens=400, seconds=4.0, wall_seconds=9.0)  # type: ignore[arg-type]


def cell(stage: str, block: str, arm: str, replicate: int, exact: float, **more: object) -> Cell:
    facts = {"package version": "1.0", "package code": "abc", "model": "m"}
    made = Cell(
        "continuum", stage, block, "judged", replicate, arm, 1e-5, 7, "c0ffee", "c0ffee", {"steps": 40},
        facts, "a processor", result(exact).plain(),
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def level_cells(stage: Stage) -> list[Cell]:
    """A checkpoint at exactly the mean p of each level that a stage stands on."""
    names = sorted({(block.task, block.level) for block in stage.blocks})
    return [
        cell("levels", f"{task}, {level}", "NLL", 0, 0.0, kind="level", registered=None,
             result=result(0.0, **{"val/mean_p": LEVELS[level], "p at 10%": 0.01}).plain())
        for task, level in names
    ]  # fmt: skip


def simulated(stage: Stage, truth: World, seed: int, noise: float = 0.01, together: float = 0.05) -> list[Cell]:
    """Judged cells of a stage around a truth.

    Args:
        stage: of the study.
        truth: exact match of each arm in each block.
        seed: of the noise.
        noise: standard deviation of a run's own luck.
        together: that of what all runs of a replicate share: pairing must take it out.
    """
    rng = np.random.default_rng(seed)
    shared = rng.normal(0, together, stage.replicates)
    cells = level_cells(stage)
    for block in stage.blocks:
        for arm in stage.arms:
            for replicate in range(stage.replicates):
                exact = truth(block, arm) + shared[replicate] + rng.normal(0, noise)
                cells.append(cell(stage.name, block.name, arm, replicate, float(np.clip(exact, 0, 1))))
    return cells
