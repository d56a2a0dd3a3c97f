"""A comparison that several workers share: its design, its finished runs and its jobs, in an Optuna storage."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from lightning_sft.compare.design import Design
from lightning_sft.compare.ledger import RUNS, read_results, write_result
from lightning_sft.compare.plan import Job
from lightning_sft.compare.result import RunResult
from lightning_sft.compare.storage import (
    LEASE,
    Leases,
    beating,
    fail_stale,
    has_heartbeats,
    open_storage,
    retried,
    shown,
)
from lightning_sft.errors import UserError

T = TypeVar("T")
DESIGN, JOB, WORKER, RESULT = "design", "job", "worker", "result "


class SharedLedger:
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
        self._url, self._name, self._folder = url, name, folder / RUNS
        self._beat, self._poll, self._patience = beat, poll, patience
        self._leases = Leases(5 * beat)
        self._life = ExitStack()
        self._mine: dict[str, int] = {}  # key of a claimed job -> id of its trial
        self._parsed: dict[str, RunResult] = {}
        self._storage = self._retried(lambda: open_storage(url, beat))
        self._study: Any = None

    def _retried(self, action: Callable[[], T]) -> T:
        return retried(action, self._url, self._patience, str(self._folder))

    # ------------------------------------------------------------------ the design

    def begin(self, design: Design) -> None:
        """Create the study of a comparison, or join the one that is there.

        Raises:
            UserError: the storage has another comparison of that name.
        """
        import optuna

        def create() -> None:
            self._study = optuna.create_study(storage=self._storage, study_name=self._name, load_if_exists=True)
            if DESIGN not in self._study.user_attrs:
                self._study.set_user_attr(DESIGN, json.dumps(design.plain()))

        self._retried(create)
        there = self.design()
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
        import optuna

        names = self._retried(lambda: optuna.get_all_study_names(self._storage))
        if self._name not in names:
            raise UserError(
                f"The storage {shown(self._url)} has no comparison {self._name!r}; it has: {', '.join(names) or 'none'}"
                ". Begin it with `lightning compare ... --storage`, or give its --name."
            )
        self._study = self._retried(lambda: optuna.load_study(study_name=self._name, storage=self._storage))
        design = self.design()
        self._hand_in_old()
        return design

    def design(self) -> Design:
        """Return the design as the storage has it."""
        return Design.of(json.loads(self._retried(lambda: self._study.user_attrs)[DESIGN]))

    def _hand_in_old(self) -> None:
        """Hand in runs that an earlier process of this folder finished and could not."""
        known = self.results()
        for digest, result in read_results(self._folder).items():
            if digest not in known:
                self._add_finished(result)

    # ------------------------------------------------------------------ results

    def results(self) -> dict[str, RunResult]:
        """Return the finished runs of all workers, by digest."""
        for trial in self._trials():
            for key, text in trial.user_attrs.items():
                digest = key.removeprefix(RESULT)
                if key.startswith(RESULT) and digest not in self._parsed:
                    self._parsed[digest] = RunResult.of(json.loads(text))
        return dict(self._parsed)

    def keep(self, result: RunResult) -> None:
        """Write a finished run to this worker's disk, then hand it in."""
        import optuna

        write_result(self._folder, result)
        text = json.dumps(result.plain(), allow_nan=False)
        try:
            (trial_id,) = self._mine.values()
            self._retried(lambda: self._storage.set_trial_user_attr(trial_id, RESULT + result.digest, text))
        except optuna.exceptions.UpdateFinishedTrialError:  # this worker was taken for dead, and is not
            if result.digest not in self.results():
                self._add_finished(result)
        self._parsed.setdefault(result.digest, result)

    def _add_finished(self, result: RunResult) -> None:
        """Add a trial that holds nothing but a finished run."""
        import optuna

        text = json.dumps(result.plain(), allow_nan=False)
        attributes = {JOB: result.key, WORKER: _worker(), RESULT + result.digest: text}
        state = optuna.trial.TrialState.COMPLETE
        trial = optuna.create_trial(state=state, values=[result.wall_seconds], user_attrs=attributes)
        self._retried(lambda: self._study.add_trial(trial))

    def _trials(self) -> list[Any]:
        trials: list[Any] = self._retried(lambda: self._study.get_trials(deepcopy=False))
        return trials

    # ------------------------------------------------------------------ jobs

    def claim(self, jobs: Sequence[Job]) -> Job | None:
        """Take a job that no other worker has, the earliest first; jobs that nobody has queued yet are queued."""
        self._revive()
        queued = self._open_trials()
        for job in jobs:
            if job.key not in queued:
                self._retried(lambda job=job: self._study.enqueue_trial({}, user_attrs={JOB: job.key}))  # type: ignore[misc]
        queued = self._open_trials()
        for job in jobs:
            trial = queued.get(job.key)  # None if another worker has finished it meanwhile
            if trial is not None and trial.state.name == "WAITING" and self._take(trial):
                self._mine[job.key] = trial._trial_id
                self._life.enter_context(beating(self._storage, trial._trial_id, self._beat))
                return job
        return None

    def _open_trials(self) -> dict[str, Any]:
        """Return the waiting or running trial of each job: the first, where two workers queued a job at once."""
        found: dict[str, Any] = {}
        for trial in self._trials():
            if JOB in trial.user_attrs and not trial.state.is_finished():
                found.setdefault(trial.user_attrs[JOB], trial)
        return found

    def _take(self, trial: Any) -> bool:
        import optuna

        running = optuna.trial.TrialState.RUNNING
        try:
            if has_heartbeats(self._storage):  # Optuna never gives up a running trial without any
                self._retried(lambda: self._storage.record_heartbeat(trial._trial_id))
            won = bool(self._retried(lambda: self._storage.set_trial_state_values(trial._trial_id, running)))
            if won:
                self._retried(lambda: self._storage.set_trial_user_attr(trial._trial_id, WORKER, _worker()))
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        return won

    def _revive(self) -> None:
        """Queue the jobs of workers that died again."""
        if has_heartbeats(self._storage):
            self._retried(lambda: fail_stale(self._study))
            return
        for trial in self._trials():
            if trial.state.name == "RUNNING" and self._leases.expired(trial._trial_id, trial.user_attrs.get(LEASE)):
                self._give_up(trial._trial_id, trial.user_attrs[JOB])

    def _give_up(self, trial_id: int, key: str) -> None:
        """End a trial and queue its job again; of several workers that try, one does."""
        import optuna

        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            failed = optuna.trial.TrialState.FAIL
            if self._retried(lambda: self._storage.set_trial_state_values(trial_id, failed)):
                self._retried(lambda: self._study.enqueue_trial({}, user_attrs={JOB: key}))

    def done(self, job: Job) -> None:
        """Say that all runs of a claimed job are kept."""
        import optuna

        self._life.close()
        trial_id = self._mine.pop(job.key)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            complete = optuna.trial.TrialState.COMPLETE
            seconds = [sum(r.wall_seconds for r in self._parsed.values() if r.key in {s.key for s in job.runs})]
            self._retried(lambda: self._storage.set_trial_state_values(trial_id, complete, seconds))

    def leave(self, job: Job) -> None:
        """Give a claimed job back at once, as far as the storage can be reached."""
        self._life.close()
        trial_id = self._mine.pop(job.key)
        patience, self._patience = self._patience, 0.0
        with suppress(UserError):
            self._give_up(trial_id, job.key)
        self._patience = patience

    def wait(self) -> None:
        """Wait for news of the other workers."""
        time.sleep(self._poll)


def _worker() -> str:
    return f"{socket.gethostname()} {os.getpid()}"


def _differences(there: Design, here: Design) -> list[str]:
    """Return what two designs differ in, in words."""
    found = [key for key in here.plain() if key != "arms" and here.plain()[key] != there.plain()[key]]
    arms = {arm.name: arm for arm in there.arms}
    for arm in here.arms:
        other = arms.pop(arm.name, None)
        if other is None:
            found.append(f"the arm {arm.name}")
        else:
            facts = [key for key in arm.facts if other.facts.get(key) != arm.facts[key]]
            found += [f"{key} of {arm.name} ({other.facts.get(key)} there, {arm.facts[key]} here)" for key in facts]
            found += [f"settings of {arm.name}"] if other.config != arm.config else []
    return [*found, *(f"the arm {name}" for name in arms)] or ["the order of its arms"]
