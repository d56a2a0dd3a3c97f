"""A training loader whose position is part of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lightning_sft.data.batches.sampler import EpochSampler
from lightning_sft.errors import UserError

State = dict[str, int | str]


class ResumableDataLoader(DataLoader[Any]):
    """A ``DataLoader`` that continues with the next unseen row.

    Lightning stores ``state_dict()`` of the training loader in each checkpoint and gives it back on resume, before
    the loop begins. The position counts batches handed to the loop, not those prefetched by workers, and skipped rows
    are never loaded. Nothing is drawn from the global random stream.

    The position holds for one epoch: iteration starts there only if the sampler is still in that epoch. So iterating
    is lazy: Lightning asks for an iterator before it tells the sampler its epoch.

    Args:
        dataset: the rows.
        sampler: their order.
        fingerprint: a digest of the data; a position in other data means nothing.
        batch_size: rows of a batch on one rank.
        collator: returns what makes a batch of rows. It is asked when iteration begins, since what the module takes may
            not be known before: Lightning counts steps, and so asks for the loader, ahead of building the model.
        num_workers: processes that load.
        pin_memory: for faster copies to a GPU.
        order: which rows share a batch, in words that change with whatever changes it.
    """

    sampler: EpochSampler

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: EpochSampler,
        fingerprint: str,
        batch_size: int,
        collator: Callable[[], Callable[[list[Any]], Any]],
        num_workers: int = 0,
        pin_memory: bool = False,
        order: str = "shuffled",
    ) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator(),
        )
        self.collator = collator
        self.fingerprint = fingerprint
        self.order = order
        self._epoch = 0
        self._batches = 0
        self._resumed = False

    def _identity(self) -> State:
        """Return what must be the same for a position to keep its meaning."""
        assert self.batch_size is not None
        return {
            "order": self.order,
            "batch_size": self.batch_size,
            "world_size": self.sampler.num_replicas,
            "rows": self.sampler.epoch_rows,
            "seed": self.sampler.seed,
            "data": self.fingerprint,
        }

    def state_dict(self) -> State:
        """Return the position: epoch, and batches of it that were handed out."""
        return {"epoch": self._epoch, "batches": self._batches, **self._identity()}

    def load_state_dict(self, state: State) -> None:
        """Continue at the position ``state``.

        The very beginning is the same position whatever the batch size, as in the checkpoint by which Lightning's
        BatchSizeFinder puts a run back to its start.

        Raises:
            UserError: the run differs from the checkpoint's in something that the position depends on.
        """
        here, state = self._identity(), _in_present_words(state)
        ignored = {"batch_size"} if not (int(state["epoch"]) or int(state["batches"])) else set()
        different = [
            f"{key} {state.get(key)!r} (now {value!r})"
            for key, value in here.items()
            if state.get(key) != value and key not in ignored
        ]
        if different:
            dated = (
                " Rows of a chat template that writes today's date are others each day: data.template_kwargs: "
                '{strftime_now: "2026-01-31"} is the day on which the run began.'
            )
            raise UserError(
                f"The checkpoint's position in the training data was stored with {', '.join(different)}; it means "
                "nothing here. Resume with the same data settings (data.order, batch_size, seed, sources), or start a "
                f"new run from the checkpoint's weights.{dated if state.get('data') != here['data'] else ''}"
            )
        self._epoch, self._batches = int(state["epoch"]), int(state["batches"])
        self._resumed = True

    @override
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of the sampler's epoch that were not handed out before."""
        epoch = self.sampler.epoch
        if not (self._resumed and epoch == self._epoch):
            self._batches = 0
        self._epoch, self._resumed = epoch, False
        assert self.batch_size is not None
        assert isinstance(self.generator, torch.Generator)
        self.collate_fn = self.collator()
        self.sampler.start = self._batches * self.batch_size
        # Seeds the workers; they draw nothing now, and would draw the same if they did.
        self.generator.manual_seed(int(np.random.SeedSequence([self.sampler.seed, epoch]).generate_state(1)[0]))
        for batch in super().__iter__():
            self._batches += 1
            yield batch


def _in_present_words(state: State) -> State:
    """Return a position of a run that knew ``batching`` and ``shuffle`` in terms of ``order``."""
    if "batching" not in state:
        return state
    order, shuffle = str(state["batching"]), bool(state.get("shuffle", True))
    if order == "padded":
        order = "shuffled" if shuffle else "sequential"
    elif order.startswith("packed") and not shuffle:
        order += ", unshuffled"
    return {**{key: value for key, value in state.items() if key not in ("batching", "shuffle")}, "order": order}
