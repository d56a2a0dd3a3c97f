"""The micro-batches that the next optimizer steps will see, read once through a loader of the sweep's own."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_sft._lightning import batches_begun, validation_loaders
from lightning_sft.errors import UserError


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch and its place.

    Attributes:
        batch: as the loader hands it out.
        is_last: whether its epoch ends with it.
    """

    batch: Any
    is_last: bool

    def fresh(self) -> Any:
        """Return a copy that the training step may write into.

        Raises:
            UserError: the batch cannot be copied.
        """
        try:
            return copy.deepcopy(self.batch)
        except (TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
            raise UserError(
                f"A sweep trains every trial on a copy of the same batches, but a {type(self.batch).__name__} of the "
                f"training loader cannot be copied: {error}. Let the collate function return plain tensors."
            ) from error


@dataclass(frozen=True)
class TrialBatches:
    """What trials are trained on.

    Attributes:
        batches: micro-batches of enough optimizer steps, over the ends of epochs.
        done: micro-batches of the first epoch that the fit has already been trained on.
        per_epoch: micro-batches of a whole epoch; ``inf`` if unknown.
    """

    batches: tuple[MicroBatch, ...]
    done: int
    per_epoch: float


def repeated(batches: Iterable[Any]) -> TrialBatches:
    """Return given micro-batches as an epoch of their own; trials go round in it as often as they need.

    Raises:
        UserError: there are none.
    """
    given = list(batches)
    if not given:
        raise UserError("A trial got no micro-batch to train on. Give at least one.")
    return TrialBatches(tuple(MicroBatch(b, i == len(given) - 1) for i, b in enumerate(given)), 0, len(given))


def upcoming(trainer: Trainer, steps: int, order: int = 0, by_hand: int | None = None) -> TrialBatches:
    """Return the micro-batches of the next ``steps`` optimizer steps: those that the fit itself will see.

    They are read through a copy of the training loader, so the fit's own loader, its workers and its sampler stay
    where they are. The position within an epoch is known for samplers that can start in the middle, such as those of
    `SFTDataModule`; other loaders are read from the beginning of an epoch.

    Args:
        trainer: in ``on_train_batch_start``, at the first micro-batch of an optimizer step.
        steps: optimizer steps.
        order: added to the sampler's seed: another order of the rows.
        by_hand: micro-batches of an optimizer step of a module that optimizes manually; None: as the trainer
            accumulates.

    Raises:
        UserError: several training loaders, or one that can be read only once.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, Iterable) or isinstance(loader, dict | list | tuple):
        raise UserError(
            f"A sweep reads one training loader; this run has {type(loader).__name__}. Join them into one DataLoader."
        )
    if isinstance(loader, Iterator):
        raise UserError(
            f"A sweep must read the training data several times, but {type(loader).__name__} can be read only once. "
            "Use a DataLoader."
        )
    mine, whole = _copy_of(loader, order), trainer.num_training_batches
    done = max(batches_begun(trainer) - 1, 0)
    epoch = trainer.current_epoch
    # by hand, the module decides when to step, and the end of an epoch completes nothing
    accumulate, missing = (trainer.accumulate_grad_batches, steps) if by_hand is None else (1, steps * by_hand)
    found: list[MicroBatch] = []
    for start in _starts(done):
        batches = _epoch(mine, epoch, start, whole)
        counted = len(found)
        for number, (batch, is_last) in enumerate(batches, start=start + 1):
            found.append(MicroBatch(batch, is_last))
            missing -= int(number % accumulate == 0 or is_last)
            if not missing:
                return TrialBatches(tuple(found), done, whole)
        if len(found) == counted and start == 0:
            raise UserError("The training loader hands out no batch, so there is nothing to make trials with.")
        epoch += 1
    raise AssertionError("unreachable: epochs do not end")


def held_out(trainer: Trainer, limit: int | None) -> list[Any]:
    """Return validation batches of this rank, at most ``limit``.

    Raises:
        UserError: the run has no validation data.
    """
    loaders = validation_loaders(trainer)
    first = loaders[0] if isinstance(loaders, list | tuple) and loaders else loaders
    batches = list(islice(_copy_of(first, 0), limit)) if first else []
    if not batches:
        raise UserError(
            "The sweep is to read the validation NLL, but the run has no validation data. Set data.val or "
            "data.val_split, or let the sweep read the training loss."
        )
    return batches


def _starts(done: int) -> Iterator[int]:
    yield done
    while True:
        yield 0


def _epoch(loader: Any, epoch: int, start: int, whole: float) -> Iterator[tuple[Any, bool]]:
    """Yield an epoch's batches from ``start`` on, each with whether it is the last."""
    sampler: Any = getattr(loader, "sampler", None)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    if hasattr(loader, "load_state_dict") and hasattr(sampler, "start"):
        loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "batches": start})
    end = None if whole == float("inf") else int(whole) - start
    iterator = islice(loader, end)
    ahead = next(iterator, None)
    count = 0
    while ahead is not None:
        batch, ahead = ahead, next(iterator, None)
        count += 1
        yield batch, ahead is None if end is None else count == end


def _copy_of(loader: Any, order: int) -> Any:
    """Return a loader over the same rows whose iteration moves nothing of the first one's."""
    if not isinstance(loader, DataLoader):
        return loader
    mine = copy.copy(loader)
    sampler = _with_own_generator(copy.copy(loader.sampler))
    if order and isinstance(getattr(sampler, "seed", None), int):
        sampler.seed += order
    attributes: dict[str, Any] = {"sampler": sampler, "_iterator": None, "persistent_workers": False}
    if loader.batch_sampler is not None:
        attributes["batch_sampler"] = copy.copy(loader.batch_sampler)
        attributes["batch_sampler"].sampler = sampler
    vars(mine).update(attributes)  # a DataLoader's own setter refuses them
    return _with_own_generator(mine)


def _with_own_generator(owner: Any) -> Any:
    generator = getattr(owner, "generator", None)
    if isinstance(generator, torch.Generator):
        own = torch.Generator(generator.device)
        own.set_state(generator.get_state())
        owner.generator = own
    return owner
