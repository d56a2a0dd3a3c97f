"""The lock of a journal: taken over at once from a process that died with it, and from no other."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("optuna")
from lightning_sft.compare.journal_lock import JournalLock, _name

DIES = """
import os, sys
from lightning_sft.compare.journal_lock import JournalLock
JournalLock(sys.argv[1]).acquire()
os._exit(9)
"""


def waits(lock: JournalLock) -> bool:
    """Whether a process that wants the lock has to wait for it."""
    thread = threading.Thread(target=lock.acquire, daemon=True)
    thread.start()
    thread.join(timeout=0.3)
    return thread.is_alive()


def test_a_dead_holder_is_not_waited_for(tmp_path: Path) -> None:
    journal = tmp_path / "compare.log"
    subprocess.run([sys.executable, "-c", DIES, str(journal)], check=False)
    file = tmp_path / "compare.log.lock"
    assert file.read_text()
    lock = JournalLock(str(journal))
    assert not waits(lock)
    assert file.read_text() == _name(os.getpid())
    lock.release()
    assert not file.exists()


@pytest.mark.parametrize("holder", ["living", "elsewhere", "unknown"])
def test_others_are_waited_for(holder: str, tmp_path: Path) -> None:
    journal = tmp_path / "compare.log"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    text = {"living": _name(os.getpid()), "elsewhere": f"another machine {dead.pid}", "unknown": ""}[holder]
    file = tmp_path / "compare.log.lock"
    file.write_text(text)
    lock = JournalLock(str(journal))
    assert waits(lock)
    file.unlink()  # its holder lets go
