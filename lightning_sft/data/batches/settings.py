"""Order and layout of batches, and the settings that say the same in other words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_sft.errors import UserError

Order = Literal["shuffled", "grouped", "packed", "sequential"]
Layout = Literal["auto", "flat", "padded"]
Batching = Literal["auto", "padded", "grouped", "packed"]


@dataclass(frozen=True)
class BatchSettings:
    """Which rows share a batch, and how they lie in memory.

    Args:
        order: ``shuffled``: a permutation of each epoch; ``grouped``: the same, with rows of similar length in a
            batch; ``packed``: packs of rows up to a budget of tokens; ``sequential``: as the rows were given.
        layout: ``flat``: the rows of a batch end to end in one sequence; ``padded``: a row a sequence, filled up to
            the longest; ``auto``: flat where the model takes it.
        shuffle: whether packs come in a new order each epoch; for other orders it follows from ``order``.
    """

    order: Order = "shuffled"
    layout: Layout = "auto"
    shuffle: bool = True

    def __post_init__(self) -> None:
        """Refuse pairs that contradict each other.

        Raises:
            UserError: names the pair to use.
        """
        if self.order == "packed" and self.layout == "padded":
            raise UserError(
                "data.order is packed with data.layout: padded: packs fill a budget of tokens, and padding each of "
                "their rows would exceed it. Use order: packed with layout: flat (or auto), or order: grouped with "
                "layout: padded."
            )

    @property
    def permuted(self) -> bool:
        """Whether epochs differ in their order."""
        return self.shuffle and self.order != "sequential"

    def describe(self, max_length: int | None) -> str:
        """Return in words what a position in an epoch depends on; the layout is none of it."""
        if self.order != "packed":
            return self.order
        return f"packed to {max_length}" + ("" if self.shuffle else ", unshuffled")


def batch_settings(
    order: Order | None = None,
    layout: Layout | None = None,
    *,
    shuffle: bool | None = None,
    batching: Batching | None = None,
    packing: bool | None = None,
    padding_free: bool | None = None,
) -> BatchSettings:
    """Return the settings that were asked for, under whatever names.

    Args:
        order: see `BatchSettings`; None is ``shuffled`` unless another name says something else.
        layout: see `BatchSettings`; None is ``auto`` unless another name says something else.
        shuffle: ``False`` is ``order: sequential``; with packs, their order stays that of the first epoch.
        batching: what named both before: ``padded``, ``grouped`` and ``packed``; ``auto`` is ``grouped``, or
            ``padded`` with ``shuffle: false``.
        packing: ``True`` is ``order: packed`` (TRL's name).
        padding_free: ``True`` is ``layout: flat``, ``False`` is ``layout: padded`` (TRL's name).

    Raises:
        UserError: two names that say different things, or a pair that cannot work.
    """
    if batching is not None and (order is not None or layout is not None):
        raise UserError(
            f"data.batching: {batching} is given beside data.order: {order} and data.layout: {layout}, which replace "
            "it. Leave batching out."
        )
    if batching == "auto":
        batching = "padded" if shuffle is False else "grouped"
    if batching is not None:
        order, layout = _OF_BATCHING[batching]
        order = "sequential" if order == "shuffled" and shuffle is False else order
    if packing is not None and order is not None and packing != (order == "packed"):
        raise UserError(f"data.packing is {packing} with data.order: {order}. Leave packing out.")
    if padding_free is not None and layout not in (None, "auto") and padding_free != (layout == "flat"):
        raise UserError(f"data.padding_free is {padding_free} with data.layout: {layout}. Leave padding_free out.")
    if packing:
        order = "packed"
    if padding_free is not None:
        layout = "flat" if padding_free else "padded"
    if order is None:
        order = "sequential" if shuffle is False else "shuffled"
    if shuffle is False and order in ("shuffled", "grouped"):
        raise UserError(
            f"data.order is {order} with data.shuffle: false, which keeps the rows as they were given. Use "
            "order: sequential alone, or leave shuffle out."
        )
    if shuffle is True and order == "sequential":
        raise UserError("data.order is sequential with data.shuffle: true. Leave shuffle out, or use order: shuffled.")
    return BatchSettings(order, layout or "auto", shuffle is not False and order != "sequential")


_OF_BATCHING: dict[str, tuple[Order, Layout]] = {
    "padded": ("shuffled", "padded"),
    "grouped": ("grouped", "padded"),
    "packed": ("packed", "auto"),
}


def at_least(lowest: int, **settings: int | None) -> None:
    """Check numbers of the data module by their names; None is always allowed.

    Raises:
        UserError: the first that is too small.
    """
    for name, value in settings.items():
        if value is not None and value < lowest:
            raise UserError(f"data.{name} is {value}; it must be at least {lowest}.")
