"""A progress bar for work that takes more than a few seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning.pytorch.utilities import rank_zero_only

T = TypeVar("T")
DELAY = 3.0
"""Seconds before a bar appears: short work stays silent."""


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Callable[[int], Any]]:
    """Give a function that is told how many more rows are done; the bar shows on rank zero of a terminal only."""
    if getattr(rank_zero_only, "rank", 0) != 0 or not sys.stderr.isatty():
        yield lambda rows: None
        return
    from tqdm import tqdm

    with tqdm(desc=what, total=total, unit=" rows", delay=DELAY, leave=False) as bar:
        yield bar.update


def counted(rows: Iterable[T], advance: Callable[[int], Any]) -> Iterator[T]:
    """Yield ``rows`` and report each."""
    for row in rows:
        yield row
        advance(1)
