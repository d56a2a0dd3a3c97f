"""Where finished runs are kept, and who runs what: the protocol, and the folder of a single writer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from lightning_sft.compare.plan import Job
from lightning_sft.compare.result import RunResult
from lightning_sft.errors import UserError
from lightning_sft.files import write_text

RUNS = "runs"


class Ledger(Protocol):
    """Finished runs of a comparison, and the jobs that are under way."""

    def results(self) -> dict[str, RunResult]:
        """Return the finished runs of all workers, by digest."""

    def claim(self, jobs: Sequence[Job]) -> Job | None:
        """Take one of the jobs, which no other worker then has; None if others have them all."""

    def keep(self, result: RunResult) -> None:
        """Keep a finished run at once, whatever becomes of its job."""

    def done(self, job: Job) -> None:
        """Say that all runs of a claimed job are kept."""

    def leave(self, job: Job) -> None:
        """Give a claimed job back, since this worker stops."""

    def wait(self) -> None:
        """Wait until the other workers may have news."""


class FolderLedger:
    """Runs in ``<folder>/runs``, a file each, with one writer at a time.

    Args:
        folder: of the comparison.
        retry_failed: forget the runs that failed, so that they run again.
    """

    def __init__(self, folder: Path, *, retry_failed: bool = False) -> None:
        self._folder = folder / RUNS
        self._retry = retry_failed
        self._results: dict[str, RunResult] = {}

    @contextmanager
    def opened(self) -> Iterator[FolderLedger]:
        """Hold the folder; what stands there is read.

        Raises:
            UserError: another process holds it.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._folder / ".lock")
        try:
            with lock.acquire(timeout=0):
                self._results = read_results(self._folder)
                if self._retry:
                    self._results = {d: r for d, r in self._results.items() if r.outcome != "failed"}
                yield self
        except Timeout as error:
            raise UserError(
                f"Another process is running the comparison in {self._folder.parent}. Wait for it, give another "
                "--folder, or give --storage for several workers."
            ) from error

    def results(self) -> dict[str, RunResult]:
        """Return the finished runs."""
        return dict(self._results)

    def claim(self, jobs: Sequence[Job]) -> Job | None:
        """Take the first job."""
        return jobs[0] if jobs else None

    def keep(self, result: RunResult) -> None:
        """Write a finished run to the disk."""
        write_result(self._folder, result)
        self._results[result.digest] = result

    def done(self, job: Job) -> None:
        """Nothing is left to do."""

    def leave(self, job: Job) -> None:
        """Nothing is left to do: nobody else wants it."""

    def wait(self) -> None:
        """Never asked: there are no others."""
        raise AssertionError("a folder has one writer")


def write_result(folder: Path, result: RunResult) -> None:
    """Write a run's file."""
    write_text(folder / f"{result.digest}.json", json.dumps(result.plain(), indent=1, allow_nan=False) + "\n")


def read_results(folder: Path) -> dict[str, RunResult]:
    """Return the runs of a folder by digest.

    Raises:
        UserError: a file is damaged; which one, and that it may be removed.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = RunResult.of(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no result of a run: {error}. Remove it, and the run is done again.") from error
        found[result.digest] = result
    return found
