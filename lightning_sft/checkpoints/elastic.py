"""A checkpoint of another number of ranks, as one of this run: each optimizer step keeps its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lightning_sft.errors import UserError

#: facts that may differ, as long as an optimizer step is made of as many rows
SIZES = ("world_size", "data_parallel_size", "accumulate_grad_batches", "batch_size")
_POSITION = {"batches", "batch_size", "world_size", "rows", "order"}


def adapt(checkpoint: dict[str, Any], saved: dict[str, Any], here: dict[str, Any], open_micro_batches: int) -> bool:
    """Turn the position of a checkpoint into the same position under other sizes, in place.

    The rows of an epoch stand in an order that does not depend on the ranks, and step s takes the same stretch of it
    whoever reads which part. So the position between two steps is a number of rows, and only what counts batches is
    counted anew: the training loader, the data module, and Lightning's loop.

    Args:
        checkpoint: as it was loaded.
        saved: facts of the run that wrote it.
        here: the same facts of this run.
        open_micro_batches: micro-batches of a step under way when it was written.

    Returns:
        Whether anything had to be turned.

    Raises:
        UserError: there is no such position; says what to change.
    """
    differing = [k for k in SIZES if k in here and k in saved and saved[k] != here[k]]
    if not differing:
        return False
    named = ", ".join(f"{k} {saved[k]} (now {here[k]})" for k in differing)
    before, now = _step_rows(saved), _step_rows(here)
    positions = list(_positions(checkpoint))
    if before is None or now is None or not positions:
        raise UserError(
            f"The checkpoint was written with {named}, and where it stands in the data is known to the batches of "
            "those alone: the accumulation changes during the run, or the data are not an SFTDataModule's. Resume with "
            f"the checkpoint's values. {_NEW_RUN}"
        )
    if before != now:
        ranks, batch_size = here["data_parallel_size"], here["batch_size"]
        fits = before % (ranks * batch_size) == 0
        way = f"trainer.accumulate_grad_batches: {before // (ranks * batch_size)}" if fits else _sizes(before, ranks)
        raise UserError(
            f"The checkpoint was written with {named}: its optimizer steps have {before} rows, and this run's would "
            f"have {now}, so that the schedule and the rows of each step would be others. Set {way}. {_NEW_RUN}"
        )
    if open_micro_batches:
        raise UserError(
            f"The checkpoint was written with {named}, in the middle of an optimizer step, whose first rows cannot be "
            "dealt out anew. Resume from last.ckpt, which is always between two steps, or with the checkpoint's values."
        )
    ranks, batch_size = here["data_parallel_size"], here["batch_size"]
    for position in positions:
        old = position["batch_size"] * position["world_size"]
        if str(position["order"]).startswith("grouped") and old != batch_size * ranks:
            raise UserError(
                f"The checkpoint was written with {named} under data.order: grouped, where the {old} rows that all "
                f"ranks read at a time are of similar length, and now these would be {batch_size * ranks}. Set "
                f"{_sizes(old, ranks)}. {_NEW_RUN}"
            )
        whole, whole_now = _batches(position["rows"], old), _batches(position["rows"], batch_size * ranks)
        batches = position["batches"]
        batches = whole_now if batches == whole else batches * old // (batch_size * ranks)
        position |= {"batches": batches, "batch_size": batch_size, "world_size": ranks}
    _count_anew(checkpoint, whole, whole_now, saved, here)
    return True


def _step_rows(facts: dict[str, Any]) -> int | None:
    """Return the rows of an optimizer step over all ranks; None where it is not one number."""
    sizes = [facts.get(name) for name in SIZES[1:]]
    whole = [size for size in sizes if isinstance(size, int)]
    return math.prod(whole) if len(whole) == len(sizes) else None


def _batches(rows: int, together: int) -> int:
    """Return the batches of a rank in an epoch, of which all ranks have as many."""
    return -(-rows // together)


def _positions(checkpoint: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the states of training loaders, wherever Lightning has put them."""
    stack: list[Any] = [v for k, v in checkpoint.items() if k not in ("state_dict", "optimizer_states", "callbacks")]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if value.keys() >= _POSITION:
                yield value
            else:
                stack += value.values()
        elif isinstance(value, list | tuple):
            stack += value


def _count_anew(
    checkpoint: dict[str, Any], whole: int, whole_now: int, saved: dict[str, Any], here: dict[str, Any]
) -> None:
    """Let Lightning's loop count the batches of this run.

    Args:
        checkpoint: its ``loops`` are changed.
        whole: batches of a rank in an epoch when it was written.
        whole_now: the same in this run.
        saved: facts of the run that wrote it.
        here: the same facts of this run.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    steps, accumulate = saved["accumulate_grad_batches"], here["accumulate_grad_batches"]
    in_epoch = progress["current"]["ready"]
    now = whole_now if in_epoch >= whole else in_epoch * accumulate // steps
    epochs = (progress["total"]["ready"] - in_epoch) // whole
    for counts, new in ((progress["current"], now), (progress["total"], epochs * whole_now + now)):
        ready = counts["ready"]
        counts.update({name: new - (ready - count) for name, count in counts.items()})  # the last may not be completed


def _sizes(rows: int, ranks: int) -> str:
    if rows % ranks:
        return f"the number of devices to a divisor of {rows}"
    return f"data.batch_size: {rows // ranks}"


_NEW_RUN = "Or start a new run from its weights: `lightning-sft export` writes a model folder."
