"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from lightning_sft.errors import UserError

ScheduleName = Literal["constant", "linear", "cosine"]
ParamGroups = list[dict[str, Any]]


def parameter_groups(module: nn.Module) -> ParamGroups:
    """Split the trainable parameters into those with weight decay and those without (norms, biases: dim < 2).

    The second group carries ``weight_decay: 0.0``, which beats the optimizer's own setting. Frozen parameters are
    left out, so the optimizer holds no state for them.

    Raises:
        UserError: nothing is trainable.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise UserError(
            "No parameter of the model is trainable: every one has requires_grad=False. Unfreeze some, or add an "
            "adapter such as peft.LoraConfig."
        )
    decay = [p for p in trainable if p.ndim >= 2]
    rest = [p for p in trainable if p.ndim < 2]
    groups: ParamGroups = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def checked_optimizer(make: Callable[[ParamGroups], Optimizer], groups: ParamGroups) -> Optimizer:
    """Make the optimizer.

    Raises:
        UserError: it refuses its settings, or evaluates its closure more than once.
    """
    try:
        optimizer = make(groups)
    except (ValueError, TypeError) as error:
        raise UserError(f"The optimizer refuses its settings: {error}") from error
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError(
            "LBFGS evaluates the loss several times a step, but a step's gradient is gathered once from its "
            "micro-batches. Use an optimizer that takes one gradient a step, such as torch.optim.AdamW."
        )
    return optimizer


def describe_optimizer(optimizer: Optimizer) -> str:
    """Return the optimizer's class with its settings, such as ``AdamW(betas=(0.9, 0.999), lr=0.001, ...)``."""
    settings = ", ".join(f"{key}={value}" for key, value in sorted(optimizer.defaults.items()))
    return f"{type(optimizer).__name__}({settings})"


def warmup_length(total_steps: float, warmup_steps: int | None, warmup_ratio: float) -> int:
    """Return the number of warm-up steps.

    Args:
        total_steps: optimizer steps of the run; infinite when unknown.
        warmup_steps: a number of steps, which beats the ratio; None to use the ratio.
        warmup_ratio: a share of ``total_steps``.

    Raises:
        UserError: a negative number, a ratio outside [0, 1], or a ratio of a run without an end.
    """
    if warmup_steps is not None:
        if warmup_steps < 0:
            raise UserError(f"warmup_steps is {warmup_steps}. Allowed: 0 or more.")
        return warmup_steps
    if not 0 <= warmup_ratio <= 1:
        raise UserError(f"warmup_ratio is {warmup_ratio}. Allowed: 0 to 1 (a share of all optimizer steps).")
    if warmup_ratio and total_steps == float("inf"):
        raise UserError(
            f"warmup_ratio is {warmup_ratio}, but the run has no known number of steps. Set trainer.max_steps or "
            "trainer.max_epochs, or give warmup_steps."
        )
    return int(total_steps * warmup_ratio) if warmup_ratio else 0


def schedule(
    optimizer: Optimizer,
    lr_scheduler: Callable[[Optimizer], LRScheduler] | ScheduleName,
    total_steps: float,
    warmup: int,
) -> LRScheduler:
    """Return the learning-rate schedule, stepped once per optimizer step.

    Args:
        optimizer: the optimizer.
        lr_scheduler: a name (transformers' schedules of that name), or a callable that makes a scheduler.
        total_steps: optimizer steps of the run; ``linear`` and ``cosine`` reach zero there.
        warmup: steps of linear warm-up from zero, in front of either.

    Raises:
        UserError: a schedule that must know its end in a run without one.
    """
    if not isinstance(lr_scheduler, str):
        return _after_warmup(optimizer, lr_scheduler, warmup) if warmup else lr_scheduler(optimizer)
    if lr_scheduler == "constant":
        return _named("constant_with_warmup", optimizer, warmup, None)
    if total_steps == float("inf"):
        raise UserError(
            f"lr_scheduler is {lr_scheduler!r}, which ends at zero, but the run has no known number of steps. Set "
            "trainer.max_steps or trainer.max_epochs, or use 'constant'."
        )
    return _named(lr_scheduler, optimizer, warmup, int(total_steps))


def _named(name: str, optimizer: Optimizer, warmup: int, total: int | None) -> LRScheduler:
    from transformers import get_scheduler

    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    assert isinstance(scheduler, LRScheduler)
    return scheduler


def _after_warmup(optimizer: Optimizer, lr_scheduler: Callable[[Optimizer], LRScheduler], warmup: int) -> LRScheduler:
    ramp = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    after = lr_scheduler(optimizer)
    if not isinstance(after, LRScheduler):
        raise UserError(f"Warm-up cannot stand in front of {type(after).__name__}: set warmup_steps and ratio to 0.")
    return SequentialLR(optimizer, [ramp, after], milestones=[warmup])
