"""Encoded rows as they come, into the flat arrays of a dataset."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_sft.data.spool import GrowingArray, pieces
from lightning_sft.data.storage.dataset import TokenDataset
from lightning_sft.data.types import Encoded


class FlatRows:
    """Gathers encoded rows; what does not fit into a little memory goes into temporary files at once.

    Attributes:
        negative: rows with tokens of negative weight in the loss.
    """

    def __init__(self) -> None:
        self._ids, self._trained = GrowingArray(np.int32), GrowingArray(np.bool_)
        self._lengths, self._ends, self._trained_tokens = (GrowingArray(np.int64) for _ in range(3))
        self._tokens = 0
        self._weights: GrowingArray[np.float32] | None = None
        self.negative = 0

    def append(self, row: Encoded) -> None:
        """Add a row behind the others."""
        if row.weights is not None and self._weights is None:
            self._weights = GrowingArray(np.float32)
            for piece in pieces(len(self._ids), 1 << 18):  # of the rows before it, which have none
                self._weights.extend(np.ones(piece.stop - piece.start, np.float32))
        if self._weights is not None:
            self._weights.extend(np.ones(len(row.ids), np.float32) if row.weights is None else row.weights)
        if row.weights is not None:
            self.negative += bool((row.weights[row.trained] < 0).any())
        self._ids.extend(row.ids)
        self._trained.extend(row.trained)
        self._tokens += len(row.ids)
        self._lengths.extend(len(row.ids))
        self._ends.extend(self._tokens)
        self._trained_tokens.extend(int(row.trained.sum()))

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def trained_tokens(self) -> NDArray[np.int64]:
        """Trained tokens of each row, (rows,)."""
        return self._trained_tokens.finish()

    def finish(self, sources: NDArray[np.int64]) -> TokenDataset:
        """Return the dataset of the rows; none can be added afterwards.

        Args:
            sources: (rows,) index of each row's source.
        """
        return TokenDataset.from_arrays(
            self._ids.finish(),
            self._trained.finish(),
            self._lengths.finish(),
            self._ends.finish(),
            sources,
            weights=None if self._weights is None else self._weights.finish(),
        )
