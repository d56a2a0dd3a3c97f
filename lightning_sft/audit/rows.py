"""The rows of an audit: which tokens are read, in which batches, and where each token stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_sft.data import SFTDataModule
from lightning_sft.data.batches.collate import Collator
from lightning_sft.data.encoding.tokenizer import pad_token_id
from lightning_sft.data.storage.dataset import Row, SetReport
from lightning_sft.errors import UserError

What = Literal["train", "val", "test"]
STAGES: dict[What, str] = {"train": "fit", "val": "validate", "test": "test"}
#: positions of a batch, padding included; a longer row is a batch of its own
POSITIONS = 4096


class AuditRows:
    """Rows of one set, encoded once for all models, and their supervised tokens in one order: row by row.

    Args:
        data: the data module; it is read and tokenised here.
        what: which of its sets.
        tokenizer: that makes the ids.
        most: the most rows to read, spread evenly over the set; None reads all.

    Attributes:
        first: place of each row's first token among all, and behind the last one the number of tokens, (rows + 1,).
        targets: (tokens,) ids.
        row: (tokens,) which of the chosen rows a token belongs to.
        source: (tokens,) index of its source.
    """

    def __init__(self, data: SFTDataModule, what: What, tokenizer: Any, most: int | None = None) -> None:
        data.tokenizer = tokenizer
        data.setup(STAGES[what])
        self.what, self.tokenizer = what, tokenizer
        self.report: SetReport = data.report[what]
        self.source_names = data.source_names
        self._dataset = data.dataset(what)
        self._source_weights = data.loss_weights.of_sources(data.source_names) if what == "train" else None
        total = len(self._dataset)
        count = total if most is None else min(most, total)
        self.chosen = np.unique(np.linspace(0, total - 1, count).round().astype(np.int64))
        counts = [int(self.read(i).trained[1:].sum()) for i in range(len(self.chosen))]
        self.first: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if not self.first[-1]:
            raise UserError(
                f"No token of the {len(self.chosen)} rows is looked at: each row's only trained token is its first, "
                "which nothing predicts. Give rows with an answer behind a prompt."
            )
        self.row = torch.from_numpy(np.repeat(np.arange(len(self.chosen)), counts))
        rows = [self.read(i) for i in range(len(self.chosen))]
        self.targets = torch.from_numpy(np.concatenate([r.ids[1:][r.trained[1:]] for r in rows]).astype(np.int64))
        self.source = torch.from_numpy(np.repeat(self._dataset.sources[self.chosen], counts))

    def read(self, index: int) -> Row:
        """Return one of the chosen rows; what training pushes the model away from, or leaves out, does not count."""
        row = self._dataset[int(self.chosen[index])]
        trained = row.trained if row.weights is None else row.trained & (row.weights > 0)
        if self._source_weights is not None and self._source_weights[row.source] <= 0:
            trained = np.zeros_like(trained)
        return replace(row, trained=trained, weights=None)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self._dataset.lengths[self.chosen].max())

    @property
    def total(self) -> int:
        """Rows of the whole set."""
        return len(self._dataset)

    def __len__(self) -> int:
        """Return the number of supervised tokens."""
        return int(self.first[-1])

    @cached_property
    def ids(self) -> set[int]:
        """Every token id in the rows."""
        found: set[int] = set()
        for i in self.chosen:
            found.update(np.unique(self._dataset[i].ids).tolist())
        return found

    def batches(self, positions: int = POSITIONS) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield padded batches of rows of like length, the longest first.

        Args:
            positions: of a batch, padding included.

        Yields:
            The places among all tokens of the batch's supervised ones, (tokens,), in its order; and the batch.
        """
        collate = Collator(pad_token_id(self.tokenizer))
        lengths = self._dataset.lengths[self.chosen]
        order = np.argsort(-lengths, kind="stable").tolist()
        while order:
            size = max(1, positions // int(lengths[order[0]]))
            rows, order = order[:size], order[size:]
            batch = collate([self.read(i) for i in rows])
            places = [torch.arange(int(self.first[i]), int(self.first[i + 1])) for i in rows]
            yield torch.cat(places), batch

    def context(self, token: int) -> list[int]:
        """Return the ids before a token, all of them."""
        at = int(self.row[token])
        row = self.read(at)
        places = np.flatnonzero(row.trained[1:]) + 1
        ids: list[int] = row.ids[: int(places[token - int(self.first[at])])].tolist()
        return ids

    def number(self, token: int) -> int:
        """Return the number of a token's row in its set."""
        return int(self.chosen[int(self.row[token])])

    def source_name(self, token: int) -> str:
        """Return the name of a token's source."""
        return self.source_names[int(self.source[token])]
