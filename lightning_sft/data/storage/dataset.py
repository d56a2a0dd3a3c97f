"""Encoded rows in flat arrays, and what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_sft.data.codes import count_codes
from lightning_sft.data.storage.cache import map_array
from lightning_sft.data.types import PADDING, BadRow, Encoded, Example


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded row as a loader hands it on; ``index`` and ``source`` are -1 for a padding row.

    ``weights`` multiply the losses of its tokens; all rows of a set have them, or none.
    """

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    index: int
    source: int
    weights: NDArray[np.float32] | None = None


class TokenDataset(Dataset[Row]):
    """All rows of one set, in flat arrays that all processes share: mapped from the cache, or inherited by a fork.

    Args:
        rows: the encoded rows, those of one source side by side.
        sources: (rows,) index of each row's source, not decreasing.
    """

    def __init__(self, rows: Sequence[Encoded], sources: Sequence[int]) -> None:
        self.lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
        self.ends = np.cumsum(self.lengths)
        self.ids = np.concatenate([row.ids for row in rows]) if rows else np.empty(0, np.int32)
        self.trained = np.concatenate([row.trained for row in rows]) if rows else np.empty(0, np.bool_)
        self.sources = np.array(sources, dtype=np.int64)
        self.weights: NDArray[np.float32] | None = None
        if any(row.weights is not None for row in rows):
            parts = (np.ones(len(row.ids), np.float32) if row.weights is None else row.weights for row in rows)
            self.weights = np.concatenate(list(parts))
        self._folder: Path | None = None

    @classmethod
    def from_arrays(
        cls,
        ids: NDArray[np.int32],
        trained: NDArray[np.bool_],
        lengths: NDArray[np.int64],
        ends: NDArray[np.int64],
        sources: NDArray[np.int64],
        folder: Path | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> TokenDataset:
        """Return the dataset of flat arrays.

        Args:
            ids: (tokens,) ids of all rows, one after the other.
            trained: (tokens,) whether each is trained.
            lengths: (rows,) tokens of each row.
            ends: (rows,) where each ends in ``ids``.
            sources: (rows,) index of each row's source.
            folder: where all but ``sources`` are mapped from: another process maps them again.
            weights: (tokens,) what the loss of each is multiplied by; None for 1.
        """
        self = cls([], [])
        self.weights = weights
        self.ids, self.trained, self.lengths, self.ends, self.sources = ids, trained, lengths, ends, sources
        self._folder = folder
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what another process maps for itself."""
        return {name: value for name, value in self.__dict__.items() if name not in self._mapped()}

    def _mapped(self) -> list[str]:
        if self._folder is None:
            return []
        return ["ids", "trained", "lengths", "ends", *(["weights"] if (self._folder / "weights.npy").exists() else [])]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name in self._mapped():
            assert self._folder is not None
            setattr(self, name, map_array(self._folder / f"{name}.npy"))

    def __len__(self) -> int:
        return len(self.lengths)

    @override
    def __getitem__(self, index: int) -> Row:
        """Return row ``index``; `PADDING` gives an empty row."""
        if index == PADDING:
            return Row(self.ids[:0], self.trained[:0], PADDING, PADDING, self._weights(0, 0))
        end = int(self.ends[index])
        start = end - int(self.lengths[index])
        source = int(self.sources[index])
        return Row(self.ids[start:end], self.trained[start:end], index, source, self._weights(start, end))

    def _weights(self, start: int, end: int) -> NDArray[np.float32] | None:
        return None if self.weights is None else self.weights[start:end]


@dataclass
class SetReport:
    """What became of the rows of one set.

    Args:
        rows: rows that are used.
        rejected: bad rows, left out under ``on_bad_row: skip``.
        dropped: rows left out by ``truncation``.
        truncated: rows shortened by ``truncation``.
        leaked: rows that also stand in an earlier set (train; for test also validation).
        leaked_dropped: those of them that were left out.
        lengths: (rows,) tokens of each row.
        full_lengths: (rows,) tokens of each row before it was truncated.
        trained: (rows,) trained tokens of each row.
        source_rows: rows of each source.
        masks: rows by where it is known from what of them is trained, see `MaskFrom`.
        unused: rows by column, or key of messages as ``messages.KEY``, that nothing reads.
        negative: rows with tokens of negative weight in the loss.
        contexts: for each file of ``loss_weights.contexts``: contexts found, contexts, lines of validation rows.
        packs: packs of the rows, under ``order: packed``.
        pack_efficiency: tokens / (packs * the most tokens of a pack).
    """

    rows: int = 0
    rejected: list[BadRow] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0
    leaked: int = 0
    leaked_dropped: int = 0
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    full_lengths: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    trained: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    source_rows: dict[str, int] = field(default_factory=dict)
    masks: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    negative: int = 0
    contexts: dict[str, list[int]] = field(default_factory=dict)
    packs: int = 0
    pack_efficiency: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.lengths.sum())

    @property
    def trained_share(self) -> float:
        """Trained tokens / all tokens."""
        return float(self.trained.sum() / max(self.tokens, 1))

    @property
    def codes(self) -> dict[str, int]:
        """Rows that are not used, by cause, see `Code`."""
        return count_codes(row.code for row in self.rejected)

    def counts(self) -> dict[str, float]:
        """Return the scalars of the report by name."""
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "trained_share": self.trained_share,
            "rejected": len(self.rejected),
            **{f"rejected/{code}": rows for code, rows in self.codes.items()},
            "dropped": self.dropped,
            "truncated": self.truncated,
            "leaked": self.leaked,
            "leaked_dropped": self.leaked_dropped,
            **{f"contexts/{file}/found": found for file, (found, _, _) in self.contexts.items()},
            **{f"contexts/{file}": given for file, (_, given, _) in self.contexts.items()},
            **({"packs": self.packs, "pack_efficiency": self.pack_efficiency} if self.packs else {}),
        }


@dataclass
class BuiltSet:
    """One encoded set.

    Args:
        dataset: the encoded rows.
        examples: what each row was made of; may be read when it is first asked for.
        report: what became of the rows.
        kept: (rows,) index of each row among those that were given.
        fingerprint: a digest of the rows in their order.
    """

    dataset: TokenDataset
    examples: Sequence[Example]
    report: SetReport
    kept: NDArray[np.int64]
    fingerprint: str
