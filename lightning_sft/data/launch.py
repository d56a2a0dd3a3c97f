"""The ranks of one run, which read each set once between them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer

from lightning_sft.data.library import SetLibrary


@contextmanager
def reading_once(sets: SetLibrary, trainer: Trainer | None) -> Iterator[None]:
    """Let one rank read what only reading tells, such as a stream, while sets are built in this context on all ranks.

    The others wait for a file's lock, which takes as long as it takes, and not in a collective, which would time out.

    Args:
        sets: of this rank.
        trainer: of the run; alone or without one, nothing is shared.
    """
    if trainer is None or trainer.world_size == 1:
        yield
        return
    sets.launch = str(trainer.strategy.broadcast(uuid.uuid4().hex))
    yield
    trainer.strategy.barrier("all ranks have their rows")
    if trainer.local_rank == 0:
        sets.forget_launch()
    sets.launch = None
