"""Finished trials on disk, so that an interrupted sweep goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_sft.files import write_text
from lightning_sft.sweep.trial import Trial

#: where a run keeps its sweeps
FOLDER = "sweep"


class TrialStore:
    """Trials by key, read by the first rank and known to all.

    They are kept in ``<run folder>/sweep/<name>.trials.json``, rewritten atomically after every trial, and looked for
    in the neighbouring run folders, too: a run that is started again has a folder of its own. Trials of another
    digest are never used.

    Args:
        trainer: the run.
        folder: the run's folder; None keeps nothing.
        name: of the sweep.
        digest: what the trials depend on.
    """

    def __init__(self, trainer: Trainer, folder: Path | None, name: str, digest: str) -> None:
        self._trainer = trainer
        self._digest = digest
        self._name = name
        self._path = None if folder is None else folder / FOLDER / f"{name}.trials.json"
        found = self._find() if trainer.is_global_zero else None
        trials: dict[str, Trial] = trainer.strategy.broadcast(found or {})
        self._trials = trials
        if trials:
            rank_zero_info(f"Sweep {name}: continues with {len(trials)} finished trials.")

    def get(self, key: str) -> Trial | None:
        """Return a finished trial, or None."""
        return self._trials.get(key)

    def put(self, key: str, trial: Trial) -> None:
        """Keep a finished trial."""
        self._trials[key] = trial
        if self._path is not None and self._trainer.is_global_zero:
            content = {"digest": self._digest, "trials": {k: asdict(t) for k, t in self._trials.items()}}
            write_text(self._path, json.dumps(content))

    def refresh(self) -> None:
        """Learn what others have finished: there are none."""

    def claim(self, keys: Sequence[str]) -> str | None:
        """Take one of some trials that are not finished, the same on every rank; None where others have them all."""
        return keys[0] if keys else None

    def leave(self, key: str) -> None:
        """Give a claimed trial back, since it is not finished here."""

    def wait(self) -> None:
        """Wait until others may have news."""

    def _find(self) -> dict[str, Trial]:
        if self._path is None:
            return {}
        neighbours = self._path.parent.parent.parent.glob(f"*/{FOLDER}/{self._path.name}")
        best: dict[str, Trial] = {}
        for path in (self._path, *neighbours):
            trials = self._read(path)
            best = trials if len(trials) > len(best) else best
        return best

    def _read(self, path: Path) -> dict[str, Trial]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["digest"] != self._digest:
                return {}
            return {key: Trial(**trial) for key, trial in content["trials"].items()}
        except (OSError, ValueError, KeyError, TypeError):  # another version's, a damaged or a vanished file
            return {}
