"""Examples -> tokens on several processes, in order, with the serial path's errors."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.types import BadRowError, Encoded, Example, MaskFrom
from lightning_sft.errors import UserError
from lightning_sft.progress import progress

MOST_PROCESSES = 8
FEW_ROWS = 2000
"""Below this the start of processes takes longer than it saves."""
CHUNK = 250
"""Rows of one task."""
AHEAD = 4
"""Tasks a process is ahead of who reads the results, which wait in memory."""

Outcome = Encoded | BadRowError | UserError


@dataclass(frozen=True)
class _EncodedChunk:
    """The outcomes of neighbouring rows, flat, since many small arrays are slow to send."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    lengths: list[int]
    masks: list[MaskFrom]
    weights: dict[int, NDArray[np.float32]]
    errors: dict[int, BadRowError | UserError]


def processes_for(rows: int, num_proc: int | None = None) -> int:
    """Return how many processes encode ``rows``.

    Args:
        rows: rows of the set.
        num_proc: the user's choice; by default one for a small set, else one a core, up to 8. Where processes are not
            forked they would run the user's script again, so there it takes an explicit number.
    """
    if multiprocessing.current_process().daemon:  # which may have no children
        return 1
    if num_proc is not None:
        return max(min(num_proc, rows), 1)
    if rows < FEW_ROWS or sys.platform != "linux":
        return 1
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def encode_rows(
    encoder: Encoder, examples: Sequence[Example], num_proc: int | None, what: str
) -> Generator[Outcome, None, None]:
    """Yield each example's tokens, or why it has none, in order.

    Args:
        encoder: rows -> tokens.
        examples: the rows.
        num_proc: see `processes_for`.
        what: name of the set, for the progress bar.

    Raises:
        UserError: a process was killed.
    """
    processes = processes_for(len(examples), num_proc)
    with progress(f"Tokenising {what}", len(examples)) as advance:
        if processes == 1:
            for example in examples:
                yield _outcome(encoder, example)
                advance(1)
            return
        with closing(_chunks(encoder, examples, processes)) as chunks:
            for chunk in chunks:
                start = 0
                for i, length in enumerate(chunk.lengths):
                    row = slice(start, start + length)
                    encoded = Encoded(chunk.ids[row], chunk.trained[row], chunk.masks[i], chunk.weights.get(i))
                    yield chunk.errors.get(i) or encoded
                    start += length
                advance(len(chunk.lengths))


def _outcome(encoder: Encoder, example: Example) -> Outcome:
    try:
        return encoder(example)
    except (BadRowError, UserError) as e:
        return e


def _chunks(encoder: Encoder, examples: Sequence[Example], processes: int) -> Generator[_EncodedChunk, None, None]:
    """Yield the chunks in order.

    Forked children inherit encoder and rows, nothing is sent to them. They touch neither torch nor the network, so
    that the locks of other threads, which a fork copies as they are, do not matter.
    """
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    starts = iter(range(0, len(examples), CHUNK))
    with ProcessPoolExecutor(processes, context, _start, (encoder, examples)) as pool:
        try:
            with _quiet_fork():  # the processes are started here
                ahead = deque(pool.submit(_encode_chunk, start) for start in islice(starts, AHEAD * processes))
            while ahead:
                chunk = ahead.popleft().result()
                ahead.extend(pool.submit(_encode_chunk, start) for start in islice(starts, 1))
                yield chunk
        except BrokenProcessPool as e:
            raise UserError(
                f"One of the {processes} processes that tokenise was killed, most likely for want of memory. Set "
                "data.num_proc: 1, or a smaller number than before."
            ) from e
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Hold back the warnings about forking: of tokenizers, whose threads the children do not use, and of Python."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*use of fork.* may lead to deadlocks", DeprecationWarning)
            yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


_work: tuple[Encoder, Sequence[Example]]
"""What a child works on."""


def _start(encoder: Encoder, examples: Sequence[Example]) -> None:
    """Prepare a child."""
    global _work
    _work = encoder, examples
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End a child whose parent was killed: it would wait for work forever, and hold the parent's locks."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_chunk(start: int) -> _EncodedChunk:
    encoder, examples = _work
    outcomes = [_outcome(encoder, example) for example in examples[start : start + CHUNK]]
    rows = [row for row in outcomes if isinstance(row, Encoded)]
    return _EncodedChunk(
        np.concatenate([np.empty(0, np.int32), *(row.ids for row in rows)]),
        np.concatenate([np.empty(0, np.bool_), *(row.trained for row in rows)]),
        [len(row.ids) if isinstance(row, Encoded) else 0 for row in outcomes],
        [row.mask if isinstance(row, Encoded) else MaskFrom.ROW for row in outcomes],
        {i: row.weights for i, row in enumerate(outcomes) if isinstance(row, Encoded) and row.weights is not None},
        {i: row for i, row in enumerate(outcomes) if not isinstance(row, Encoded)},
    )
