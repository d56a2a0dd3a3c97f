"""The lock of an Optuna journal, which does not outlive the process that held it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from optuna.storages.journal import JournalFileOpenLock
from typing_extensions import override

SUFFIX = ".lock"
"""Of Optuna's file beside the journal that is the lock."""


class JournalLock(JournalFileOpenLock):
    """Optuna's lock for shared folders, with the name of its holder in it.

    Optuna waits half a minute for a lock whose holder was killed. Here the next process of the same machine sees that
    the holder is gone and takes the lock away at once; locks of other machines are left to Optuna.

    Args:
        path: of the journal.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._file = Path(path + SUFFIX)

    @override
    def acquire(self) -> bool:
        self._take_away()
        taken = super().acquire()
        self._file.write_text(_name(os.getpid()), encoding="utf-8")
        return taken

    def _take_away(self) -> None:
        if not _is_abandoned(self._file):
            return
        with suppress(OSError), FileLock(self._file.with_name(self._file.name + ".away")):
            if _is_abandoned(self._file):  # nobody of this machine was first, whose lock it would be now
                self._file.unlink()


def _is_abandoned(file: Path) -> bool:
    """Return whether a lock is held by a process of this machine that is there no more."""
    try:
        text = file.read_text(encoding="utf-8")
        pid = int(text.rpartition(" ")[2])
    except (OSError, ValueError):  # there is none, or it is just being made
        return False
    if text != _name(pid):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _name(pid: int) -> str:
    """Return what tells a process from all others: machine, boot and name space of process numbers, and its number."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {pid}"
    return f"{socket.gethostname()} {pid}"
