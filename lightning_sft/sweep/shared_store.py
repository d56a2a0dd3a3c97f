"""Finished trials in a storage that several workers share, so that each runs some of a search's trials."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_sft.compare.queue import SEARCH, SharedQueue
from lightning_sft.compare.storage import shown
from lightning_sft.errors import UserError
from lightning_sft.sweep.store import TrialStore
from lightning_sft.sweep.trial import Trial
from lightning_sft.units import plural

T = TypeVar("T")


class SharedTrialStore(TrialStore):
    """A `TrialStore` whose trials are those of all workers; only the first rank of each talks to the storage.

    Args:
        trainer: the run.
        folder: the run's folder; None keeps nothing there.
        name: of the sweep, and of the study.
        digest: what the trials depend on.
        parts: the same, a digest of each part by name.
        url: of the storage, see `open_storage`.
        beat: seconds between two signs of life of a worker.
        patience: seconds to try again where the storage cannot be reached.

    Raises:
        UserError: the search in the storage depends on something else; says on what.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: Path | None,
        name: str,
        digest: str,
        parts: Mapping[str, str],
        url: str,
        beat: float,
        patience: float,
    ) -> None:
        super().__init__(trainer, folder, name, digest)
        kept = "memory" if self._path is None else str(self._path)
        timing = {"beat": beat, "poll": min(5.0, beat), "patience": patience}
        self._queue = self._first(lambda: SharedQueue(url, name, kept, **timing))
        there = json.loads(self._first(lambda: self._begin(parts)) or "{}")
        different = [part for part in parts if there.get(part, parts[part]) != parts[part]]
        if trainer.strategy.broadcast(different):
            raise UserError(
                f"This worker cannot take part in the search {name!r} of {shown(url)}: it was begun with another "
                f"{', another '.join(different)}. Use what it was begun with, or give another name or storage."
            )
        old = {key: trial for key, trial in self._trials.items() if trainer.is_global_zero}
        self._first(lambda: self._hand_in(old))
        self.refresh()
        rank_zero_info(
            f"Sweep {name}: shared with other workers in {shown(url)}; {plural(len(self._trials), 'trial')} done."
        )

    def _first(self, action: Callable[[], T]) -> T | None:
        """Return what an action returns on the first rank; what it refuses there ends all."""
        found, said = None, None
        if self._trainer.is_global_zero:
            try:
                found = action()
            except UserError as error:
                said = str(error)
        said = self._trainer.strategy.broadcast(said)
        if said is not None:
            raise UserError(said)
        return found

    def _begin(self, parts: Mapping[str, str]) -> str:
        assert self._queue is not None
        return self._queue.begin_study(SEARCH, json.dumps(dict(parts)))

    def _hand_in(self, trials: Mapping[str, Trial]) -> None:
        assert self._queue is not None
        known = self._queue.texts()
        for key, trial in trials.items():
            if key not in known:
                self._queue.add(key, json.dumps(asdict(trial)), key, trial.seconds)

    @override
    def refresh(self) -> None:
        queue = self._queue
        own = self._first(lambda: {} if queue is None else queue.texts())
        texts: dict[str, str] = self._trainer.strategy.broadcast(own or {})
        for key, text in texts.items():
            if key not in self._trials:
                self._trials[key] = Trial(**json.loads(text))

    @override
    def put(self, key: str, trial: Trial) -> None:
        super().put(key, trial)
        self._first(lambda: self._keep(key, trial))

    def _keep(self, key: str, trial: Trial) -> None:
        queue = self._queue
        assert queue is not None
        if queue.holds(key):
            queue.hand_in(key, json.dumps(asdict(trial)), key, trial.seconds)
            queue.finish(key, trial.seconds)
        else:  # a trial that nobody shares out, such as one of a prediction
            queue.add(key, json.dumps(asdict(trial)), key, trial.seconds)

    @override
    def claim(self, keys: Sequence[str]) -> str | None:
        taken = self._first(lambda: None if self._queue is None else self._queue.take(keys))
        claimed: str | None = self._trainer.strategy.broadcast(taken)
        if claimed is not None:
            self.refresh()  # another worker may have finished it meanwhile
            if claimed in self._trials:
                self._first(lambda: None if self._queue is None else self._queue.finish(claimed, 0.0))
        return claimed

    @override
    def leave(self, key: str) -> None:
        if self._queue is not None and self._queue.holds(key):
            self._queue.give_back(key)

    @override
    def wait(self) -> None:
        if self._queue is not None:
            self._queue.wait()
