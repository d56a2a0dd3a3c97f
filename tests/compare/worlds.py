"""Comparisons whose runs are functions: what a run gives is known, and takes no time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lightning_sft.compare.design import Arm, Design, RunSpec
from lightning_sft.compare.rates import RateSearch
from lightning_sft.compare.result import Point, RunResult

#: arm -> (best rate, exact match at that rate)
ARMS = {"A": (1e-3, 0.5), "B": (4e-4, 0.6), "C": (1e-3, 0.5)}


def design(*names: str, **settings: Any) -> Design:
    """A comparison of arms by name, with a small search."""
    given = {"replicates": 4, "search": RateSearch(1e-4, 1e-2, 3, 1, 2), **settings}
    return Design("toy", tuple(Arm(name, f"arm: {name}") for name in names or tuple(ARMS)), **given)


def world(of: Design, arms: dict[str, tuple[float, float]] = ARMS) -> Callable[[RunSpec], RunResult]:
    """What a run of each arm gives: a parabola over log rate, rows that move all arms, and luck of its own."""

    def run(spec: RunSpec) -> RunResult:
        best, top = arms[spec.arm]
        draw = of.draw(spec)
        rows = 0.05 * np.random.default_rng(draw.seed).standard_normal()
        luck = 0.01 * np.random.default_rng([draw.seed, len(spec.arm), ord(spec.arm[0])]).standard_normal()
        off = 0.0 if spec.rate is None else 0.05 * math.log10(spec.rate / best) ** 2
        exact = float(top + rows + luck - off)
        values = {"val/exact_match": exact, "val/nll": 2 - exact, "drift/general/kl": 0.1, "drift/general/nll": 3.1}
        points = (Point(0, 0, 0.0, {"val/exact_match": 0.1, "val/nll": 1.9}), Point(5, 500, 2.5, values))
        return RunResult(of.digest_of(spec), spec.key, "finished", None, points, 5, 500, 2.5, 4.0, 3.0)

    return run


class Memory:
    """A ledger of one worker, in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, RunResult] = {}
        self.under_way: list[str] = []
        self.left: list[str] = []

    def results(self) -> dict[str, RunResult]:
        return dict(self.kept)

    def claim(self, jobs: Any) -> Any:
        self.under_way.append(jobs[0].key)
        return jobs[0]

    def keep(self, result: RunResult) -> None:
        assert result.digest not in self.kept, "a run was done twice"
        self.kept[result.digest] = result

    def done(self, job: Any) -> None:
        self.under_way.remove(job.key)

    def leave(self, job: Any) -> None:
        self.left.append(job.key)

    def wait(self) -> None:
        raise AssertionError
