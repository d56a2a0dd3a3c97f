"""Loaders that keep no position, and whether their batches, and those of training, are flat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from lightning_sft.data.batches.sampler import EpochSampler
from lightning_sft.data.batches.settings import Layout
from lightning_sft.errors import UserError


def is_flat(layout: Layout, module: Any) -> tuple[bool, str]:
    """Return whether batches are flat, and a line that says why.

    Args:
        layout: as the user set it.
        module: takes the batches; None where there is no trainer.

    Raises:
        UserError: ``layout`` is flat, and the module does not take flat batches.
    """
    if layout == "padded" or module is None:
        return layout == "flat", ""
    takes = bool(getattr(module, "takes_flat_batches", False))
    why = getattr(module, "flat_refusal", None) or f"{type(module).__name__} does not declare takes_flat_batches"
    if layout == "flat" and not takes:
        raise UserError(
            f"data.layout is flat, and {why}. Use layout: auto or padded, with order: grouped to save padding."
        )
    return takes, "Rows of a batch lie end to end, without padding." if takes else f"Batches are padded: {why}."


def sequential_loader(
    dataset: Any,
    batch_size: int,
    collate_fn: Callable[[list[Any]], Any],
    *,
    num_workers: int,
    ranks: tuple[int, int] | None,
    sampler: Sampler[int] | None = None,
) -> DataLoader[Any]:
    """Return a loader that goes through the rows in order and draws nothing from the global random stream.

    Args:
        dataset: the rows, a ``Dataset`` of known length.
        batch_size: rows of a batch on one rank.
        collate_fn: rows -> batch.
        num_workers: processes that load.
        ranks: number of ranks that share the rows, and this one's place; None leaves the rows to Lightning.
        sampler: this rank's rows, where they are not simply every row in turn.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler or (None if ranks is None else EpochSampler(dataset, None, *ranks, shuffle=False)),
        num_workers=num_workers,
        collate_fn=collate_fn,
        pin_memory=ranks is not None and torch.cuda.is_available(),
        generator=torch.Generator(),
    )
