"""A queue of jobs and a ledger of what they gave, which any number of workers share, in an Optuna storage."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

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
#: attributes of a trial: its job, its worker, and what it gave, a key each
JOB, WORKER, RESULT = "job", "worker", "result "
#: attributes of a study: the design of a comparison, or what the trials of a search depend on
DESIGN, SEARCH = "design", "search"


class SharedQueue:
    """Jobs by key, of which each has one worker at a time, and texts by key that they gave.

    What a worker that died has handed in counts, and its job goes to another.

    Args:
        url: of the storage, see `open_storage`.
        name: of the study that holds them.
        kept: where finished runs lie when the storage cannot be reached, for messages.
        beat: seconds between two signs of life.
        poll: seconds between two looks for news of others.
        patience: seconds to try again where the storage cannot be reached.
    """

    def __init__(
        self, url: str, name: str, kept: str, *, beat: float = 15.0, poll: float = 5.0, patience: float = 120.0
    ) -> None:
        self._url, self._name, self._kept = url, name, kept
        self._beat, self._poll, self._patience = beat, poll, patience
        self._leases = Leases(5 * beat)
        self._life = ExitStack()
        self._mine: dict[str, int] = {}  # key of a claimed job -> id of its trial
        self._storage = self._retried(lambda: open_storage(url, beat))
        self._study: Any = None

    def _retried(self, action: Callable[[], T]) -> T:
        return retried(action, self._url, self._patience, self._kept)

    def begin_study(self, attribute: str, content: str) -> str:
        """Create the study, or join the one that is there; return the content that it was created with.

        Args:
            attribute: of the study, that says what it is about.
            content: of that attribute, where this worker is the first.
        """
        import optuna

        def create() -> None:
            self._study = optuna.create_study(storage=self._storage, study_name=self._name, load_if_exists=True)
            if attribute not in self._study.user_attrs:
                with warnings.catch_warnings():
                    warnings.simplefilter(
                        "ignore", optuna.exceptions.ExperimentalWarning
                    )  # names have been so since 3.2
                    self._study.set_metric_names(["seconds"])  # for optuna-dashboard
                self._study.set_user_attr(attribute, content)

        self._retried(create)
        return self.about(attribute)

    def join_study(self) -> None:
        """Join a study that is there.

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

    def about(self, attribute: str) -> str:
        """Return an attribute of the study.

        Raises:
            UserError: the study is about something else.
        """
        found = self._retried(lambda: self._study.user_attrs)
        if attribute not in found:
            raise UserError(
                f"The storage {shown(self._url)} has {self._name!r} already, and it is no {attribute}. Give another "
                "name, or another storage."
            )
        return str(found[attribute])

    # ------------------------------------------------------------------ what jobs gave

    def texts(self) -> dict[str, str]:
        """Return what all workers have handed in, by key; of two of a key, the first."""
        found: dict[str, str] = {}
        for trial in self._trials():
            for key, text in trial.user_attrs.items():
                if key.startswith(RESULT):
                    found.setdefault(key.removeprefix(RESULT), text)
        return found

    def hand_in(self, key: str, text: str, job: str, seconds: float) -> None:
        """Hand in what the job at hand gave, or a part of it.

        Args:
            key: of what it gave.
            text: what it gave.
            job: its name, where it must be added as a job of its own.
            seconds: that it took.
        """
        import optuna

        try:
            (trial_id,) = self._mine.values()
            self._retried(lambda: self._storage.set_trial_user_attr(trial_id, RESULT + key, text))
        except optuna.exceptions.UpdateFinishedTrialError:  # this worker was taken for dead, and is not
            if key not in self.texts():
                self.add(key, text, job, seconds)

    def add(self, key: str, text: str, job: str, seconds: float) -> None:
        """Add a finished trial that holds nothing but what was given; arguments as of `hand_in`."""
        import optuna

        attributes = {JOB: job, WORKER: _worker(), RESULT + key: text}
        state = optuna.trial.TrialState.COMPLETE
        trial = optuna.create_trial(state=state, values=[seconds], user_attrs=attributes)
        self._retried(lambda: self._study.add_trial(trial))

    def _trials(self) -> list[Any]:
        trials: list[Any] = self._retried(lambda: self._study.get_trials(deepcopy=False))
        return trials

    # ------------------------------------------------------------------ jobs

    def take(self, jobs: Sequence[str]) -> str | None:
        """Take a job that no other worker has, the earliest first; jobs that nobody has queued yet are queued."""
        self._revive()
        queued = self._open_trials()
        for job in jobs:
            if job not in queued:
                self._retried(lambda job=job: self._study.enqueue_trial({}, user_attrs={JOB: job}))  # type: ignore[misc]
        queued = self._open_trials()
        for job in jobs:
            trial = queued.get(job)  # None if another worker has finished it meanwhile
            if trial is not None and trial.state.name == "WAITING" and self._take(trial):
                self._mine[job] = trial._trial_id
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

    def holds(self, job: str) -> bool:
        """Return whether this worker has a job."""
        return job in self._mine

    def finish(self, job: str, seconds: float) -> None:
        """Say that all of a job is handed in, and how long it took."""
        import optuna

        self._life.close()
        trial_id = self._mine.pop(job)
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            complete = optuna.trial.TrialState.COMPLETE
            self._retried(lambda: self._storage.set_trial_state_values(trial_id, complete, [seconds]))

    def give_back(self, job: str) -> None:
        """Give a job back at once, as far as the storage can be reached."""
        self._life.close()
        trial_id = self._mine.pop(job)
        patience, self._patience = self._patience, 0.0
        with suppress(UserError):
            self._give_up(trial_id, job)
        self._patience = patience

    def wait(self) -> None:
        """Wait for news of the other workers."""
        time.sleep(self._poll)


def _worker() -> str:
    return f"{socket.gethostname()} {os.getpid()}"
