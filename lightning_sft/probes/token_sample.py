"""A fixed sample of rows with their supervised tokens, and the forward pass that reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.metrics.silent import TokenReading
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.objectives import NLL
from lightning_sft.scores import IGNORED

_SEED = 0x5117


@dataclass(frozen=True)
class SampledRow:
    """One document and those of its tokens that are looked at.

    Attributes:
        ids: token ids, (length,), int64.
        at: where the tokens stand that are looked at, rising, (tokens,), int64; none is the first of the document.
        row: number of the row in its set.
        source: index of its data source; -1 if unknown.
    """

    ids: Tensor
    at: Tensor
    row: int
    source: int = -1


class TokenSample:
    """Rows in a fixed order, and their tokens one after the other.

    Args:
        rows: the rows; those without a token to look at are left out.
        most_tokens: the most tokens to look at; of more, a fixed random part is kept.

    Attributes:
        rows: the rows.
        row: row of each token in its set, (tokens,), int64; ``source`` and ``position`` in its document likewise.
        left_out: how many tokens of the rows were more than ``most_tokens``.
    """

    def __init__(self, rows: Sequence[SampledRow], most_tokens: int | None = None) -> None:
        rows = sorted((r for r in rows if len(r.at)), key=lambda r: r.row)
        total = sum(len(r.at) for r in rows)
        self.left_out = 0 if most_tokens is None else max(0, total - most_tokens)
        if most_tokens is not None and self.left_out:
            keep = torch.zeros(total, dtype=torch.bool)
            keep[torch.tensor(choose(total, most_tokens), dtype=torch.long)] = True
            parts = keep.split([len(r.at) for r in rows])
            rows = [SampledRow(r.ids, r.at[part], r.row, r.source) for r, part in zip(rows, parts, strict=True)]
            rows = [r for r in rows if len(r.at)]
        self.rows = rows
        self.row = _spread([r.row for r in rows], rows)
        self.source = _spread([r.source for r in rows], rows)
        self.position = torch.cat([r.at for r in rows]) if rows else torch.zeros(0, dtype=torch.long)
        sizes = torch.tensor([len(r.at) for r in rows], dtype=torch.long)
        self._of_row = torch.repeat_interleave(torch.arange(len(rows)), sizes)
        self._starts: list[int] = (sizes.cumsum(0) - sizes).tolist()
        self._width = 1 + int(self.position.max()) if rows else 1
        self._keys = self.row * self._width + self.position

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.row)

    def document(self, token: int) -> SampledRow:
        """Return the row that a token stands in."""
        return self.rows[int(self._of_row[token])]

    def targets(self) -> Tensor:
        """Return the id of each token, (tokens,), int64."""
        return torch.cat([r.ids[r.at] for r in self.rows]) if self.rows else torch.zeros(0, dtype=torch.long)

    def tokens_of(self, number: int) -> Tensor:
        """Return which tokens belong to the row of a number in ``rows``, (its tokens,), int64."""
        start = self._starts[number]
        return torch.arange(start, start + len(self.rows[number].at))

    def find(self, row: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Look tokens up by their row in the set and their position in it.

        Args:
            row: (any,), int64.
            position: (any,), int64.

        Returns:
            Which of them are in the sample, (any,), bool, and the place of those in it.
        """
        keys = self._keys.to(row.device)
        wanted = row * self._width + position
        if not len(keys):
            return torch.zeros_like(wanted, dtype=torch.bool), wanted[:0]
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        found = (keys[place] == wanted) & (position < self._width) & (row >= 0)
        return found, place[found]

    def batches(self, size: int) -> list[list[int]]:
        """Return the numbers of rows that are read together, rows of similar length, the longest first."""
        order = sorted(range(len(self.rows)), key=lambda i: (-len(self.rows[i].ids), i))
        return [order[i : i + size] for i in range(0, len(order), size)]

    def digest(self) -> str:
        """Return a digest of the tokens and of what stands before them."""
        found = hashlib.sha256()
        for r in self.rows:
            found.update(r.ids.numpy().tobytes() + b"|" + r.at.numpy().tobytes() + b"|" + str(r.row).encode())
        return found.hexdigest()


def _spread(values: Sequence[int], rows: Sequence[SampledRow]) -> Tensor:
    sizes = torch.tensor([len(r.at) for r in rows], dtype=torch.long)
    return torch.repeat_interleave(torch.tensor(values, dtype=torch.long), sizes)


def choose(count: int, most: int) -> list[int]:
    """Return ``most`` of the numbers below ``count``, rising: the same for the same two numbers, whatever the seed."""
    if count <= most:
        return list(range(count))
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(_SEED), device="cpu")[:most].tolist())


def documents_of(batch: object, row: int) -> list[SampledRow]:
    """Return the documents of a batch as transformers' models take it.

    Args:
        batch: a mapping with ``input_ids`` and ``labels``, (batch, length), labels unshifted and -100 where untrained;
            with ``attention_mask`` where rows are padded, or ``position_ids`` that begin at 0 in each packed document;
            or a tensor of ids, each of which is a label.
        row: number that all of them get.

    Raises:
        UserError: it is something else.
    """
    if isinstance(batch, Tensor):
        batch = {"input_ids": batch, "labels": batch}
    given = batch if isinstance(batch, Mapping) else {}
    ids, labels = given.get("input_ids"), given.get("labels")
    if not isinstance(ids, Tensor) or not isinstance(labels, Tensor) or ids.shape != labels.shape or ids.ndim > 2:
        raise UserError(
            f"a batch of this run is {_described(batch)}. Needed: input_ids and labels of one shape, (batch, length), "
            "labels unshifted and -100 where untrained"
        )
    ids, labels = ids.detach().cpu().long(), labels.detach().cpu().long()
    trained = labels != IGNORED
    if bool((labels[trained] != ids[trained]).any()):
        raise UserError(
            "the labels of its batches are not input_ids at the same place. Needed: unshifted labels, -100 where "
            "untrained"
        )
    if ids.ndim == 1:
        ids, trained = ids[None], trained[None]
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    found: list[SampledRow] = []
    for i in range(len(ids)):
        if isinstance(mask, Tensor) and mask.shape[-1] == ids.shape[1] and mask.ndim <= 2:
            kept = mask.detach().cpu().reshape(-1, ids.shape[1])[i].bool()
            parts = [(ids[i][kept], trained[i][kept])]
        elif isinstance(positions, Tensor) and positions.shape[-1] == ids.shape[1]:
            starts = (positions.detach().cpu().reshape(-1, ids.shape[1])[i] == 0).nonzero()[:, 0].tolist()
            cuts = [*starts, ids.shape[1]] if starts[:1] == [0] else [0, *starts, ids.shape[1]]
            parts = [(ids[i, a:b], trained[i, a:b]) for a, b in pairwise(cuts)]
        else:
            parts = [(ids[i], trained[i])]
        found += [SampledRow(of, where_trained(tokens), row) for of, tokens in parts]
    return found


def where_trained(trained: Tensor) -> Tensor:
    """Return the positions of supervised tokens, (tokens,), without the first position, which nothing predicts."""
    return trained[1:].nonzero()[:, 0] + 1


def _described(batch: object) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping with {', '.join(map(str, batch)) or 'nothing'}"
    return f"a {type(batch).__name__}"


@contextmanager
def naming_competitors(scorer: TokenScorer) -> Iterator[None]:
    """Let a scorer's head name competitors inside the context."""
    before, scorer.with_competitors = scorer.with_competitors, True
    try:
        yield
    finally:
        scorer.with_competitors = before


@torch.no_grad()
def read_rows(scorer: TokenScorer, rows: Sequence[SampledRow], device: torch.device) -> TokenReading:
    """Read the tokens of some rows in one forward pass, in the scorer's mode; logits are never held as a whole.

    Args:
        scorer: around the model.
        rows: padded to the longest of them.
        device: of the model.

    Returns:
        Their tokens, one row after the other.
    """
    length = max(len(r.ids) for r in rows)
    shape = (len(rows), length)
    ids, mask, labels = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, IGNORED)
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)], mask[i, : len(r.ids)] = r.ids, 1
        labels[i, r.at] = r.ids[r.at]
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    with naming_competitors(scorer):
        output = scorer({name: value.to(device) for name, value in batch.items()}, NLL())
    return TokenReading.of_scores(output.scores)
