"""Learning-rate schedules: transformers' names, schedulers of one's own, and those that follow a metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from lightning_sft.errors import UserError

#: transformers' names, but "greedy", whose object is no scheduler of torch
ScheduleName = Literal[
    "constant",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "constant_with_warmup",
    "warmup_stable_decay",
    "reduce_lr_on_plateau",
]
Scheduler = LRScheduler | ReduceLROnPlateau
MakeScheduler = Callable[[Optimizer], Scheduler]

#: names of schedules that go on for ever
_ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt", "reduce_lr_on_plateau")
#: what a scheduler that follows a metric reads unless it says otherwise
MONITOR = "val/nll"
#: an interval that never comes: such schedulers are stepped after each validation, by `follow_validation`
_NEVER = 1_000_000_000
#: a rate of a resumed run that differs by less from the one it stood at is no jump
_JUMP = 0.1
_CONFIG_KEYS = ("interval", "frequency", "monitor", "strict", "name")


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
    lr_scheduler: MakeScheduler | ScheduleName,
    total_steps: float,
    warmup: int,
    kwargs: Mapping[str, Any] | None = None,
) -> Scheduler:
    """Return the learning-rate schedule.

    Args:
        optimizer: the optimizer.
        lr_scheduler: a name (transformers' schedules of that name), or a callable that makes a scheduler.
        total_steps: optimizer steps of the run, at which most named schedules end.
        warmup: steps of linear warm-up from zero, in front of either.
        kwargs: further arguments of a named schedule.

    Raises:
        UserError: a schedule that must know its end in a run without one, arguments that it does not take, or warm-up
            before a scheduler that follows a metric.
    """
    if not isinstance(lr_scheduler, str):
        if kwargs:
            raise UserError(
                f"lr_scheduler_kwargs is {dict(kwargs)}, and lr_scheduler is no name. Give the scheduler its arguments."
            )
        return _after_warmup(optimizer, lr_scheduler, warmup) if warmup else lr_scheduler(optimizer)
    if total_steps == float("inf") and lr_scheduler not in _ENDLESS:
        raise UserError(
            f"lr_scheduler is {lr_scheduler!r}, which ends somewhere, but the run has no known number of steps. Set "
            "trainer.max_steps or trainer.max_epochs, or use 'constant'."
        )
    if lr_scheduler == "reduce_lr_on_plateau" and warmup:
        raise UserError(_NO_WARMUP.format(lr_scheduler))
    return _named(lr_scheduler, optimizer, warmup, None if total_steps == float("inf") else int(total_steps), kwargs)


_NO_WARMUP = "Warm-up cannot stand in front of {}, which follows a metric: set warmup_steps and warmup_ratio to 0."


def _named(
    name: str, optimizer: Optimizer, warmup: int, total: int | None, kwargs: Mapping[str, Any] | None
) -> Scheduler:
    from transformers import get_scheduler

    own = "constant_with_warmup" if name == "constant" else name
    given = {"scheduler_specific_kwargs": dict(kwargs)} if kwargs else {}
    if kwargs and own == "constant_with_warmup":
        raise UserError(f"lr_scheduler_kwargs is {dict(kwargs)}, but {name!r} takes none.")
    try:
        scheduler = get_scheduler(own, optimizer, num_warmup_steps=warmup, num_training_steps=total, **given)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The schedule {name!r} refuses its arguments ({dict(kwargs or {})}): {error}. Give what it needs by "
            "model.lr_scheduler_kwargs."
        ) from error
    assert isinstance(scheduler, LRScheduler | ReduceLROnPlateau)
    return scheduler


def _after_warmup(optimizer: Optimizer, lr_scheduler: MakeScheduler, warmup: int) -> LRScheduler:
    ramp = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    after = lr_scheduler(optimizer)
    if not isinstance(after, LRScheduler):
        raise UserError(_NO_WARMUP.format(type(after).__name__))
    return SequentialLR(optimizer, [ramp, after], milestones=[warmup])


def scheduler_config(scheduler: Scheduler, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what Lightning needs to know of a scheduler.

    Schedulers are stepped once per optimizer step, those that follow a metric after each validation, unless ``given``
    says otherwise.

    Args:
        scheduler: the scheduler.
        given: the user's ``interval``, ``frequency``, ``monitor``, ``strict`` and ``name``.

    Raises:
        UserError: other keys or an unknown interval.
    """
    given = dict(given or {})
    unknown = sorted(set(given) - set(_CONFIG_KEYS))
    if unknown or given.get("interval", "step") not in ("step", "epoch"):
        raise UserError(
            f"lr_scheduler_config is {given}. Allowed keys: {', '.join(_CONFIG_KEYS)}; interval: step or epoch."
        )
    if not isinstance(scheduler, ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "step", **given}
    monitor = getattr(scheduler, "monitor", MONITOR)
    own: dict[str, Any] = {} if "interval" in given or "frequency" in given else {"frequency": _NEVER}
    return {"scheduler": scheduler, "monitor": monitor, "interval": "epoch", "reduce_on_plateau": True, **own, **given}


def follow_validation(trainer: Trainer) -> None:
    """Step the schedulers that follow a metric, after a validation of a fit.

    Raises:
        UserError: the metric is not among those that were logged.
    """
    if trainer.sanity_checking or trainer.state.fn != "fit":
        return
    for config in trainer.lr_scheduler_configs:
        if not config.reduce_on_plateau or config.frequency != _NEVER:
            continue
        value = trainer.callback_metrics.get(str(config.monitor))
        if value is None:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise UserError(
                f"The learning rate follows {config.monitor!r}, which the validation has not logged. Logged: {logged}. "
                "Set lr_scheduler_config: {monitor: ...} to one of them."
            )
        scheduler: Any = config.scheduler  # those that follow a metric take it
        scheduler.step(value)


def go_on_along_own_curve(trainer: Trainer) -> None:
    """Give a resumed run the rate of its own schedule at the step reached.

    A checkpoint brings the rate that its run's schedule had there, which was drawn for that run's number of steps: 0
    where a finished run is continued. A scheduler of functions, as all named ones are, takes these from the run and not
    from the checkpoint, so the rate can be computed; of an unchanged run it is the same to the last bit. Rates that
    somebody has set since are left alone, and so are other schedulers, whose length comes with the checkpoint. A rate
    that jumps is told.
    """
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if not isinstance(scheduler, LambdaLR):
            continue
        curves = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        rates = [base * curve(scheduler.last_epoch) for base, curve in curves]
        before = scheduler.get_last_lr()[0]
        if not math.isclose(rates[0], before, rel_tol=_JUMP):
            rank_zero_info(
                f"The learning rate goes on at {rates[0]:.3g}, and not at {before:.3g}, where the run stood: its "
                f"schedule is planned anew, for {trainer.estimated_stepping_batches:,.0f} steps."
            )
        for i, group in enumerate(scheduler.optimizer.param_groups):
            if not isinstance(group["lr"], torch.Tensor) and group["lr"] == scheduler.get_last_lr()[i]:
                group["lr"] = scheduler._last_lr[i] = rates[i]
