"""What one step of an optimizer moves per unit of rate, found by letting the optimizer itself run."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_sft.errors import UserError

#: A step this small changes the replica so little that optimizers that look at their parameters' size see one size.
_SMALL = 1e-6
#: steps of the past that a replica replays; moments that remember more than so many have long settled
_PAST = 2000


def replica(optimizer: Optimizer, groups: Iterable[dict[str, Any]]) -> Optimizer:
    """Return an optimizer of the same class and attributes, with other parameter groups and an empty state.

    Whatever a class keeps on itself comes along; only groups, state and hooks are its own. Methods that somebody has
    put on the object (a scheduler wraps ``step``) stay behind: they would step the optimizer that they come from.
    """
    kind = type(optimizer)
    twin = object.__new__(kind)
    for name, value in vars(optimizer).items():
        if not (callable(value) and hasattr(kind, name)):
            # hooks belong to the run
            vars(twin)[name] = OrderedDict() if isinstance(value, OrderedDict) else value
    twin.state = defaultdict(dict)
    twin.param_groups = [dict(group) for group in groups]
    return twin


def step_gains(optimizer: Optimizer, steps: int, done: int = 0) -> list[float]:
    """Return what each step moves a weight, per unit of rate, under a gradient that stays the same.

    1 in every step for SGD and Adam; 1, 1.9, 2.71, ... for SGD with momentum 0.9, whose sum is not normalised; 10, 7.1,
    5.8, ... for RMSprop, whose average starts at zero. Weight decay is left out: it is no answer to the gradient.

    Args:
        optimizer: of the run; it is not touched. Settings are those of its first parameter group.
        steps: how many gains are wanted.
        done: steps that the run has behind it.

    Raises:
        UserError: the optimizer has no learning rate, cannot take a step by itself, or does not move against the
            gradient.
    """
    name = type(optimizer).__name__
    if "lr" not in optimizer.param_groups[0]:
        raise UserError(
            f"Cannot predict this: {name} has no learning rate ('lr' in its parameter groups), so no rate is critical."
        )
    try:
        gains = _moves(optimizer, min(done, _PAST) + steps)
    except Exception as error:
        raise UserError(
            f"Cannot predict this: {name} takes no step of its own from gradients alone "
            f"({type(error).__name__}: {error}). Sweep instead: CriticalLearningRateFinder without predict."
        ) from error
    gains = gains[len(gains) - steps :]
    if not all(math.isfinite(gain) and gain > 0 for gain in gains):
        raise UserError(
            f"Cannot predict this: under a steady gradient {name} moves {gains[:3]} times the rate in its steps, and a "
            "prediction needs steps against the gradient. Sweep instead: CriticalLearningRateFinder without predict."
        )
    return gains


def _moves(optimizer: Optimizer, steps: int) -> list[float]:
    """Return how far each step of a replica moves a small matrix per unit of rate, under a steady gradient."""
    own = optimizer.param_groups[0]
    place = own["params"][0].device  # some settings of optimizers work on a GPU alone; float64 does not work on mps
    device = place if place.type in ("cpu", "cuda") else None
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64, device=device))
    group = {**{k: copy.deepcopy(v) for k, v in own.items() if k != "params"}, "params": [weight]}
    group.update({k: 0.0 for k in ("weight_decay",) if k in group}, lr=_SMALL)
    twin, moved = replica(optimizer, [group]), []
    with torch.enable_grad():
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            before = float(weight.detach().mean())
            twin.step()
            moved.append((before - float(weight.detach().mean())) / _SMALL)
    return moved


def rates_of_progress(progress: Sequence[float], gains: Sequence[float]) -> list[float]:
    """Return the rates at which steps make the given progress under a steady gradient.

    Args:
        progress: of each step, rate times gain, (steps,).
        gains: of `step_gains`, at least as many.
    """
    return [wanted / gain for wanted, gain in zip(progress, gains, strict=False)]
