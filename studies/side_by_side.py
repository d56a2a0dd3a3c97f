"""Runs of several comparisons, two at a time in processes of one thread each, until none is missing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.plan import make_plan
from lightning_sft.compare.result import RunResult
from lightning_sft.errors import UserError

Results = dict[str, dict[str, RunResult]]


def run_missing(
    designs: Mapping[str, Design],
    results: Results,
    run: Callable[[str, RunSpec], RunResult],
    keep: Callable[[str, RunSpec, RunResult], None],
    workers: int = 2,
) -> None:
    """Do what is missing of some comparisons, until nothing is; finished runs are kept one by one.

    Args:
        designs: by the name of their block.
        results: name of a block -> digest of a run -> what it has given; filled here.
        run: does a run; called in threads.
        keep: writes a finished run.
        workers: runs side by side.

    Raises:
        UserError: a run ended with an error; it is not kept.
        SystemExit: a signal asked to stop.
    """

    def finished(name: str, spec: RunSpec, result: RunResult) -> None:
        results.setdefault(name, {})[designs[name].digest_of(spec)] = result
        keep(name, spec, result)

    run_wanted(lambda under_way: _wanted(designs, results, under_way), run, finished, workers)


def run_wanted(
    wanted: Callable[[Sequence[tuple[str, RunSpec]]], Iterable[tuple[str, RunSpec]]],
    run: Callable[[str, RunSpec], RunResult],
    keep: Callable[[str, RunSpec, RunResult], None],
    workers: int = 2,
) -> None:
    """Do runs side by side until none is wanted.

    A signal to stop, or a run that ends with an error, starts nothing new; what is under way is finished and kept.

    Args:
        wanted: is told which runs are under way, and gives those that may start now, with the name of their block.
        run: does a run; called in threads.
        keep: is given each finished run before ``wanted`` is asked again.
        workers: runs side by side.

    Raises:
        UserError: a run ended with an error; it is not kept.
        SystemExit: a signal asked to stop.
    """
    under_way: dict[Future[RunResult], tuple[str, RunSpec]] = {}
    problem: BaseException | None = None
    with stop_requested() as stopped, ThreadPoolExecutor(workers) as pool:
        while True:
            for name, spec in wanted(list(under_way.values())):
                if len(under_way) == workers or stopped or problem is not None:
                    break
                under_way[pool.submit(run, name, spec)] = (name, spec)
            if not under_way:
                break
            done, _ = wait(under_way, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                name, spec = under_way.pop(future)
                error = future.exception()
                if error is None and (failure := future.result()).outcome == "failed":
                    error = UserError(f"{name}, {spec.key}: {failure.error}. Nothing is kept of it.")
                if error is not None:
                    problem = problem or error
                    continue
                keep(name, spec, future.result())
    if problem is not None:
        raise problem
    if stopped:
        raise SystemExit(128 + stopped[0])


def _wanted(
    designs: Mapping[str, Design], results: Results, under_way: Sequence[tuple[str, RunSpec]]
) -> Iterator[tuple[str, RunSpec]]:
    for name, design in designs.items():
        known = results.get(name, {})
        for job in make_plan(design, known).jobs:
            for spec in job.runs:
                if design.digest_of(spec) not in known and (name, spec) not in under_way:
                    yield name, spec


@contextmanager
def stop_requested() -> Iterator[list[int]]:
    """Give a list that holds the signal once SIGINT or SIGTERM has come, in place of ending at once."""
    came: list[int] = []

    def remember(number: int, frame: Any) -> None:
        came.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prepare_processes(root: Path) -> None:
    """Let processes that are started from here use one thread, and find this folder's classes by their paths."""
    os.environ["OMP_NUM_THREADS"] = "1"
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *([others] if others else [])])
