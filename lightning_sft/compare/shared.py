"""A comparison that several workers share: its design, its finished runs and its jobs, in an Optuna storage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.compare.design import Design
from lightning_sft.compare.facts import differences
from lightning_sft.compare.ledger import RUNS, read_results, write_result
from lightning_sft.compare.plan import Job
from lightning_sft.compare.queue import DESIGN, SharedQueue
from lightning_sft.compare.result import RunResult
from lightning_sft.compare.storage import shown
from lightning_sft.errors import UserError


class SharedLedger(SharedQueue):
    """Finished runs and jobs of a comparison in an Optuna storage, for any number of workers.

    A finished run is on this worker's disk before it is handed in; what could not be handed in goes with the next
    start. The results of a worker that died count, and its job goes to another.

    Args:
        url: of the storage, see `open_storage`.
        name: of the comparison, and of the study.
        folder: of this worker's files.
        beat: seconds between two signs of life.
        poll: seconds between two looks for news of others.
        patience: seconds to try again where the storage cannot be reached.
    """

    def __init__(
        self, url: str, name: str, folder: Path, *, beat: float = 15.0, poll: float = 5.0, patience: float = 120.0
    ) -> None:
        self._folder = folder / RUNS
        self._parsed: dict[str, RunResult] = {}
        super().__init__(url, name, str(self._folder), beat=beat, poll=poll, patience=patience)

    # ------------------------------------------------------------------ the design

    def begin(self, design: Design) -> None:
        """Create the study of a comparison, or join the one that is there.

        Raises:
            UserError: the storage has another comparison of that name.
        """
        there = Design.of(json.loads(self.begin_study(DESIGN, json.dumps(design.plain()))))
        if there.digest != design.digest:
            raise UserError(
                f"The storage {shown(self._url)} has a comparison {self._name!r} that differs in "
                f"{', '.join(_differences(there, design))}. Give another --name, or what it was begun with."
            )
        self._hand_in_old()

    def join(self) -> Design:
        """Return the design of the comparison that is in the storage.

        Raises:
            UserError: there is none of that name.
        """
        self.join_study()
        design = self.design()
        self._hand_in_old()
        return design

    def design(self) -> Design:
        """Return the design as the storage has it."""
        return Design.of(json.loads(self.about(DESIGN)))

    def _hand_in_old(self) -> None:
        """Hand in runs that an earlier process of this folder finished and could not."""
        known = self.results()
        for digest, result in read_results(self._folder).items():
            if digest not in known:
                self.add(digest, _text(result), result.key, result.wall_seconds)

    # ------------------------------------------------------------------ results and jobs

    def results(self) -> dict[str, RunResult]:
        """Return the finished runs of all workers, by digest."""
        for digest, text in self.texts().items():
            if digest not in self._parsed:
                self._parsed[digest] = RunResult.of(json.loads(text))
        return dict(self._parsed)

    def keep(self, result: RunResult) -> None:
        """Write a finished run to this worker's disk, then hand it in."""
        write_result(self._folder, result)
        self.hand_in(result.digest, _text(result), result.key, result.wall_seconds)
        self._parsed.setdefault(result.digest, result)

    def claim(self, jobs: Sequence[Job]) -> Job | None:
        """Take a job that no other worker has, the earliest first."""
        key = self.take([job.key for job in jobs])
        return next((job for job in jobs if job.key == key), None)

    def done(self, job: Job) -> None:
        """Say that all runs of a claimed job are kept."""
        keys = {spec.key for spec in job.runs}
        self.finish(job.key, sum(r.wall_seconds for r in self._parsed.values() if r.key in keys))

    def leave(self, job: Job) -> None:
        """Give a claimed job back at once, as far as the storage can be reached."""
        self.give_back(job.key)


def _text(result: RunResult) -> str:
    return json.dumps(result.plain(), allow_nan=False)


def _differences(there: Design, here: Design) -> list[str]:
    """Return what two designs differ in, in words."""
    found = [key for key in here.plain() if key != "arms" and here.plain()[key] != there.plain()[key]]
    arms = {arm.name: arm for arm in there.arms}
    for arm in here.arms:
        other = arms.pop(arm.name, None)
        if other is None:
            found.append(f"the arm {arm.name}")
        else:
            found += [f"the arm {arm.name} ({what})" for what in differences(other.facts, arm.facts)]
            found += [f"settings of {arm.name}"] if other.config != arm.config else []
    return [*found, *(f"the arm {name}" for name in arms)] or ["the order of its arms"]
