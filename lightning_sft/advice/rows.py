"""The rows that a capability reading reads, as batches: of our data module, or of any data loader's dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_sft.data.batches.collate import Collator
from lightning_sft.data.encoding.tokenizer import pad_token_id
from lightning_sft.data.storage.dataset import Row
from lightning_sft.errors import UserError
from lightning_sft.models.packing import documents, is_packed
from lightning_sft.scores import IGNORED

Batch = dict[str, Tensor]
#: of a batch of the reading, padding included; a longer row is read alone
MOST_ROWS, MOST_TOKENS = 16, 2048
#: what a model's forward takes, of what a batch may hold
MODEL_KEYS = ("input_ids", "attention_mask", "position_ids", "token_type_ids")


@dataclass(frozen=True)
class ReadingRows:
    """Rows to read.

    Attributes:
        batches: each with ``input_ids``, ``labels`` and, where the model takes them, ``attention_mask`` or
            ``position_ids``, (batch, length); ``row``: a number of its own for each row of the reading, and
            ``source``, (batch,) each, or (batch, length) where rows hold several documents.
        sources: names of the sources by their index.
        rows: rows in the batches.
        rows_of_set: rows of the set that they were taken from; None if unknown.
    """

    batches: list[Batch]
    sources: tuple[str, ...] = ()
    rows: int = 0
    rows_of_set: int | None = field(default=None)


def spread(count: int, limit: int | None) -> list[int]:
    """Return at most ``limit`` of the numbers below ``count``, evenly spread."""
    if limit is None or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


def rows_of_datamodule(datamodule: Any, what: str, tokenizer: Any, limit: int | None) -> ReadingRows | None:
    """Return rows of a set of our data module, evenly spread over it and its sources; None if it has no such set.

    They are padded rows, whatever the batches of the run look like.

    Args:
        datamodule: with ``dataset`` and ``source_names``, such as `SFTDataModule`; others have no set.
        what: ``"train"`` or ``"val"``.
        tokenizer: its padding token fills rows up.
        limit: the most rows; None is all.
    """
    if not hasattr(datamodule, "dataset") or what not in getattr(datamodule, "sets", ()):
        return None
    dataset = datamodule.dataset(what)
    chosen = [dataset[i] for i in spread(len(dataset), limit)]
    collate = Collator(pad_token_id(tokenizer))
    numbered = sorted(enumerate(chosen), key=lambda pair: (len(pair[1].ids), pair[0]))
    batches = []
    for group in _groups(numbered):
        batch = collate([row for _, row in group])
        weight = batch.pop("loss_weight", None)
        if weight is not None:  # a label of weight 0 is untrained
            batch["labels"] = batch["labels"].masked_fill(weight == 0, IGNORED)
        batches.append({**batch, "row": torch.tensor([number for number, _ in group])})
    return ReadingRows(batches, tuple(datamodule.source_names), len(chosen), len(dataset))


def _groups(numbered: list[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    """Yield rows of like length, few enough for a batch."""
    group: list[tuple[int, Row]] = []
    for pair in numbered:
        if group and (len(group) == MOST_ROWS or (len(group) + 1) * len(pair[1].ids) > MOST_TOKENS):
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def rows_of_loader(loader: Any, limit: int | None) -> ReadingRows:
    """Return rows of a loader's dataset, evenly spread, put together by its own collate function.

    The loader is not iterated: neither its sampler nor its workers notice, and no random number of the run is drawn.

    Args:
        loader: a ``DataLoader`` over a dataset with a length, whose batches hold ``input_ids`` and unshifted
            ``labels``, or are the ids themselves, as in plain language modelling.
        limit: the most rows; None is all.

    Raises:
        UserError: another kind of loader, or of batch; says what is needed.
    """
    dataset = loader.dataset if isinstance(loader, DataLoader) else None
    if dataset is None or isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        what = type(loader if dataset is None else dataset).__name__
        raise UserError(
            f"The capability is read from rows spread over the training set, and a {what} cannot be asked for them "
            "without using it up. Use a DataLoader over a dataset with a length, or leave CapabilityProbe out."
        )
    by_item = loader.batch_sampler is None  # then the dataset's items are batches
    size = 1 if by_item else min(loader.batch_size or MOST_ROWS, MOST_ROWS)
    batches: list[Batch] = []
    rows = 0
    chosen = spread(len(dataset), limit)
    with isolate_rng():
        for start in range(0, len(chosen), size):
            if limit is not None and rows >= limit:
                break
            items = [dataset[i] for i in chosen[start : start + size]]
            batch = _plain(loader.collate_fn(items[0] if by_item else items), rows)
            rows = int(batch["row"].max()) + 1
            batches.append(batch)
    return ReadingRows(batches, (), rows, None if by_item else len(dataset))


def _plain(batch: Any, first: int) -> Batch:
    """Return what a reading needs of anybody's batch, its rows numbered from ``first`` on.

    Raises:
        UserError: it holds no ids and labels.
    """
    if isinstance(batch, Tensor) and batch.ndim == 2 and not batch.is_floating_point():
        batch = {"input_ids": batch, "labels": batch}
    given = batch if isinstance(batch, Mapping) else {}
    ids, labels = given.get("input_ids"), given.get("labels")
    if not isinstance(ids, Tensor) or not isinstance(labels, Tensor) or ids.ndim != 2 or ids.shape != labels.shape:
        held = sorted(map(str, given)) or type(batch).__name__
        raise UserError(
            f"The capability is read from batches with `input_ids` and unshifted `labels`, (batch, length) each, and "
            f"the collate function returned {held}. Return a mapping with both, or leave CapabilityProbe out."
        )
    if isinstance(weight := given.get("loss_weight"), Tensor):
        labels = labels.masked_fill(weight == 0, IGNORED)
    taken = {key: given[key] for key in MODEL_KEYS if isinstance(given.get(key), Tensor)}
    rows = documents(taken["position_ids"]) if is_packed(taken) else torch.arange(len(ids))
    sources = given.get("source")
    known = isinstance(sources, Tensor) and sources.shape in (ids.shape, ids.shape[:1])
    return {
        **taken,
        "labels": labels,
        "row": rows + first,
        "source": sources if known else torch.full((len(ids),), -1),
    }
