"""An Optuna storage as the shared queue and ledger of a comparison: opening, retrying, and who still lives.

Only enqueued trials are run: samplers and pruning would break equal trials. A trial is one job. Its runs are kept as
user attributes, so that optuna-dashboard shows them.
"""

from __future__ import annotations

import difflib
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from lightning_sft.errors import UserError, first_line

T = TypeVar("T")
JOURNAL = "journal:"
#: attribute of a running trial on a journal, which its worker keeps changing
LEASE = "lease"


def open_storage(url: str, beat: float) -> Any:
    """Open an Optuna storage.

    Args:
        url: ``journal:FILE`` on a folder that all workers share, ``sqlite:///FILE`` on one machine, or a database such
            as ``postgresql+psycopg2://user@host/name``.
        beat: seconds between two signs of life of a worker; after five without one its job is given to another.

    Raises:
        UserError: Optuna is not installed, or it does not know such a storage.
    """
    try:
        import optuna
        import sqlalchemy
        from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        from lightning_sft.compare.journal_lock import JournalLock
    except ImportError as error:
        raise UserError("--storage needs the package optuna: `pip install lightning-sft[sweep]`.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith(JOURNAL):
        path = Path(url.removeprefix(JOURNAL)).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(str(path))))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--storage is {url!r}, and {str(path)!r} is no journal of Optuna: {_cause(error)}."
            ) from error
    if "://" not in url:
        raise UserError(
            f"--storage is {url!r}. Allowed: journal:FILE (a folder that all workers share), sqlite:///FILE (one "
            "machine), or a database such as postgresql+psycopg2://user@host/name."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats have been so since 2.8
        try:
            return RDBStorage(
                url,
                heartbeat_interval=max(1, round(beat)),
                grace_period=max(2, round(5 * beat)),
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
        except ImportError as error:
            raise UserError(
                f"The driver of the database of {shown(url)} is not installed ({_cause(error)}). For PostgreSQL: `pip "
                "install psycopg2-binary`, and postgresql+psycopg2://user@host/name."
            ) from error
        except sqlalchemy.exc.OperationalError:  # it cannot be reached, now
            raise
        except sqlalchemy.exc.DatabaseError as error:
            raise UserError(f"--storage is {shown(url)!r}, which cannot be used: {_cause(error)}.") from error
        except (ValueError, sqlalchemy.exc.ArgumentError) as error:  # the latter: no such kind of database
            raise UserError(
                f"--storage is {shown(url)!r}, which is no address of a database: {_cause(error)}."
            ) from error


def require_storage(url: str) -> None:
    """Raise where a storage is a file that does not exist, which opening it would create.

    Raises:
        UserError: names the file, and what lies beside it.
    """
    path = _file_of(url)
    if path is None or path.exists():
        return
    near = sorted(p.name for p in path.parent.glob("*") if p.is_file() and not p.name.startswith("."))
    close = difflib.get_close_matches(path.name, near, n=1, cutoff=0.5)
    there = f"did you mean {close[0]!r}?" if close else f"{path.parent} holds no file of a like name."
    if not path.parent.is_dir():
        there = f"the folder {path.parent} does not exist, either."
    raise UserError(
        f"--storage is {shown(url)!r}, and {str(path)!r} does not exist; {there} `lightning compare ... --storage` "
        "begins a comparison there."
    )


def _file_of(url: str) -> Path | None:
    """Return the file that a storage is; None for a server or memory."""
    if url.startswith(JOURNAL):
        return Path(url.removeprefix(JOURNAL)).expanduser()
    kind, _, path = url.partition(":///")
    return Path(path) if kind.partition("+")[0] == "sqlite" and path not in ("", ":memory:") else None


def shown(url: str) -> str:
    """Return a storage's address without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def retried(action: Callable[[], T], url: str, patience: float, kept: str) -> T:
    """Return what an action on a storage returns; where it cannot be reached, try again for a while.

    Args:
        action: may be done twice.
        url: of the storage, for messages.
        patience: seconds.
        kept: where finished runs lie meanwhile.

    Raises:
        UserError: it could not be reached all that time.
    """
    since, pause = time.monotonic(), 0.2
    while True:
        try:
            return action()
        except Exception as error:
            if not _is_unreachable(error):
                raise
            if time.monotonic() - since > patience:
                raise UserError(
                    f"The storage {shown(url)} could not be reached for {patience:.0f} s: {_cause(error)}. Finished "
                    f"runs are kept in {kept}; the same command hands them in."
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, 15.0)


def _is_unreachable(error: Exception) -> bool:
    """Return whether an error is about the way to a storage: a disk, a network, a server, a lock that others hold."""
    if isinstance(error, OSError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OperationalError", "InterfaceError", "StorageInternalError"})


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def has_heartbeats(storage: Any) -> bool:
    """Return whether a storage counts the heartbeats of running trials itself, as databases do."""
    return hasattr(storage, "record_heartbeat")


def fail_stale(study: Any) -> None:
    """End the trials of a database whose workers died, and queue them again."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)


@contextmanager
def beating(storage: Any, trial_id: int, beat: float) -> Iterator[None]:
    """Show every ``beat`` seconds that the worker of a trial lives: a heartbeat in a database, a lease on a journal."""
    stop = threading.Event()

    def show() -> None:
        count = 0
        while not stop.wait(beat):
            count += 1
            with suppress(Exception):  # the next one may get through; without any, the job goes to another worker
                if has_heartbeats(storage):
                    storage.record_heartbeat(trial_id)
                else:
                    storage.set_trial_user_attr(trial_id, LEASE, count)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5 * beat)


class Leases:
    """Which running trials of a journal show no sign of life, by this process's own clock.

    Clocks of machines differ, so nobody compares times: a lease that has not changed for a while is given up.

    Args:
        patience: seconds without a change.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._seen: dict[int, tuple[object, float]] = {}

    def expired(self, trial_id: int, lease: object) -> bool:
        """Return whether a trial's lease has not changed for too long since this process first saw it."""
        now = time.monotonic()
        value, since = self._seen.get(trial_id, (None, now))
        if trial_id not in self._seen or value != lease:
            self._seen[trial_id] = (lease, now)
            return False
        return now - since > self._patience
