"""Progress of work that takes more than a few seconds: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from lightning_sft.units import duration

T = TypeVar("T")
DELAY = 3.0
"""Seconds before anything is shown: short work stays silent."""
SOON = 1.0
"""The same where nothing else is shown meanwhile, and a person waits for an answer."""
EVERY = 15.0
"""Seconds between two lines of a log."""
LOADING = "Loading torch, Lightning and transformers ..."
"""Takes a few seconds before anything else can be said, and a minute on a busy machine."""


def is_first_rank() -> bool:
    """Return whether this process is the one that speaks."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    decided = getattr(lightning, "rank_zero_only", None)
    if decided is None:  # not imported yet: only a rank that Lightning started knows that it is one
        return os.environ.get("LOCAL_RANK", "0") == "0"
    return getattr(decided, "rank", 0) == 0


def note(line: str) -> None:
    """Say a line about work that begins, beside what a program may read from the output."""
    if is_first_rank():
        print(line, file=sys.stderr, flush=True)


@contextmanager
def waiting(line: str, after: float = DELAY) -> Iterator[None]:
    """Say a line if what is done within takes longer than a few seconds, such as an import."""
    timer = threading.Timer(after, note, (line,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # no thread is left to a process that is forked later


def loading() -> AbstractContextManager[None]:
    """Say what is waited for, where torch is still to be imported."""
    return nullcontext() if "torch" in sys.modules else waiting(LOADING)


@contextmanager
def progress(what: str, total: int | None = None, unit: str = "rows") -> Iterator[Callable[[int], Any]]:
    """Give a function that is told how many more are done; rank zero shows it.

    Args:
        what: is done, such as ``Tokenising train``.
        total: how many there are; None if that is unknown.
        unit: of what.
    """
    if not is_first_rank():
        yield lambda count: None
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(desc=what, total=total, unit=f" {unit}", delay=DELAY, leave=False) as bar:
            yield bar.update
    else:
        yield Lines(what, total, unit)


class Lines:
    """Prints how far the work is, every few seconds; the arguments are those of `progress`."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self.first = 0
        self.since = time.monotonic()
        self.due = self.since + DELAY

    def __call__(self, count: int) -> None:
        """Count some more."""
        now = time.monotonic()
        if not self.first and count == 1:  # the first one also prepares all others, so it is not timed
            self.first, self.since = 1, now
        self.done += count
        if now < self.due:
            return
        self.due = now + EVERY
        if not self.total:
            print(f"{self.what}: {self.done:,} {self.unit}", file=sys.stderr, flush=True)
            return
        timed = self.done - self.first
        left = (now - self.since) / max(timed, 1) * max(self.total - self.done, 0)
        told = f", {duration(left)} left" if timed else ""
        share = f"{self.done:,} of {self.total:,} {self.unit} ({self.done / self.total:.0%})"
        print(f"{self.what}: {share}{told}", file=sys.stderr, flush=True)


def counted(rows: Iterable[T], advance: Callable[[int], Any]) -> Iterator[T]:
    """Yield ``rows`` and report each."""
    for row in rows:
        yield row
        advance(1)
