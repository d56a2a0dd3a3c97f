"""Read and set a run's peak learning rate, keeping the shape of its schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.optim import Optimizer

from lightning_sft.errors import UserError

#: Rates in a parameter group, and in a scheduler, that scale with the peak rate.
_GROUP_KEYS = ("lr", "initial_lr", "max_lr", "min_lr", "base_lr")
_SCHEDULER_KEYS = ("base_lrs", "_last_lr", "eta_min", "min_lrs", "max_lrs")


def peak_rate(trainer: Trainer) -> float:
    """Return the learning rate that the first parameter group was configured with: the peak of most schedules.

    Raises:
        UserError: it is not positive, so no other rate is a multiple of it.
    """
    group = trainer.optimizers[0].param_groups[0]
    rate = float(group.get("initial_lr", group["lr"]))
    if not rate > 0:
        raise UserError(
            f"The optimizer's learning rate is {rate}. A sweep scales every parameter group and the schedule by a "
            "common factor, so give the optimizer a positive rate."
        )
    return rate


def set_peak_rate(trainer: Trainer, rate: float) -> None:
    """Scale every parameter group and scheduler so that `peak_rate` becomes ``rate``.

    Ratios between groups, warm-up, the present place in the schedule and its shape stay. What a scheduler computes
    from numbers of its own (the floor of a ``LambdaLR``'s function, say) cannot be seen and is not scaled.
    """
    peak = peak_rate(trainer)

    def scaled(value: Any) -> Any:
        # the peak becomes the very number that a run with this rate would begin with, not its neighbour
        return rate if value == peak else value * (rate / peak)

    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            _scale(group, _GROUP_KEYS, scaled)
    for scheduler in _schedulers(trainer):
        _scale(vars(scheduler), _SCHEDULER_KEYS, scaled)


def set_rate_now(optimizer: Optimizer, rate: float) -> None:
    """Set the rate of the next step, whatever the schedule says, keeping the ratios between parameter groups."""
    first = optimizer.param_groups[0]
    base = float(first.get("initial_lr", first["lr"]))
    for group in optimizer.param_groups:
        value = rate * float(group.get("initial_lr", group["lr"])) / base
        _assign(group, "lr", value)
        if rate:  # groups keep their ratios through a step at a rate of 0
            group["initial_lr"] = value


def _scale(table: dict[str, Any], keys: tuple[str, ...], scaled: Callable[[Any], Any]) -> None:
    for key in keys:
        value = table.get(key)
        if isinstance(value, list | tuple):
            table[key] = type(value)(map(scaled, value))
        elif isinstance(value, int | float | torch.Tensor):
            _assign(table, key, scaled(value))


def _assign(table: dict[str, Any], key: str, value: Any) -> None:
    # a rate that is a tensor (capturable, compiled optimizers) must stay the same tensor
    if isinstance(table[key], torch.Tensor):
        table[key].fill_(value)
    else:
        table[key] = value


def _schedulers(trainer: Trainer) -> Iterator[Any]:
    """Yield all schedulers, and those inside of chains and sequences."""
    open_: list[Any] = [config.scheduler for config in trainer.lr_scheduler_configs]
    while open_:
        scheduler = open_.pop()
        yield scheduler
        open_ += getattr(scheduler, "_schedulers", [])
