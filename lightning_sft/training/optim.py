"""Parameter groups, the optimizer made from them, and its schedule."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_sft.errors import UserError
from lightning_sft.training.fused import fuse
from lightning_sft.training.schedules import MakeScheduler, ScheduleName, schedule, scheduler_config, warmup_length

ParamGroups = list[dict[str, Any]]


@dataclass(frozen=True)
class ParameterRule:
    """Settings for the parameters whose name contains a regular expression.

    Attributes:
        match: the expression, searched for in names such as ``model.layers.0.self_attn.q_proj.lora_B.default.weight``.
        lr: their rate.
        lr_factor: multiplies the optimizer's rate instead; 16 for ``lora_B`` is LoRA+ (arXiv 2402.12354).
        weight_decay: their weight decay.
    """

    match: str
    lr: float | None = None
    lr_factor: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            UserError: no regular expression, both rates, or nothing to set.
        """
        try:
            re.compile(self.match)
        except re.error as error:
            raise UserError(f"parameter_rules: {self.match!r} is no regular expression: {error}.") from error
        if self.lr is not None and self.lr_factor is not None:
            raise UserError(f"parameter_rules: {self.match!r} has lr and lr_factor. Allowed: one of them.")
        if self.lr is self.lr_factor is self.weight_decay is None:
            raise UserError(f"parameter_rules: {self.match!r} sets nothing. Give lr, lr_factor or weight_decay.")
        if any(v is not None and not 0 <= v < float("inf") for v in (self.lr, self.lr_factor, self.weight_decay)):
            raise UserError(f"parameter_rules: {self} has a number that cannot be. Allowed: 0 or more.")

    def settings(self) -> dict[str, float]:
        """Return what the rule sets."""
        own = {"lr": self.lr, "lr_factor": self.lr_factor, "weight_decay": self.weight_decay}
        return {key: value for key, value in own.items() if value is not None}


def parameter_groups(module: nn.Module, rules: Sequence[ParameterRule] = ()) -> ParamGroups:
    """Split the trainable parameters into those with weight decay and those without (norms, biases: dim < 2).

    The second kind carries ``weight_decay: 0.0``, which beats the optimizer's own setting. Frozen parameters are left
    out, so the optimizer holds no state for them.

    Args:
        module: whose parameters.
        rules: applied in turn; of two that match, the later one's settings count. Parameters with equal settings form
            a group, in which ``lr_factor`` waits for the optimizer's rate: see `checked_optimizer`.

    Raises:
        UserError: nothing is trainable, or a rule matches nothing.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise UserError(
            "No parameter of the model is trainable: every one has requires_grad=False. Unfreeze some, or add an "
            "adapter such as peft.LoraConfig."
        )
    for rule in rules:
        if not any(re.search(rule.match, name) for name in trainable):
            shown = ", ".join(list(trainable)[:3])
            raise UserError(
                f"parameter_rules: {rule.match!r} is in the name of none of the {len(trainable)} trainable parameters, "
                f"such as {shown}."
            )
    groups: dict[tuple[tuple[str, float], ...], ParamGroups] = {}
    found: ParamGroups = []
    for decays in (True, False):
        for name, parameter in trainable.items():
            if (parameter.ndim >= 2) != decays:
                continue
            settings = {} if decays else {"weight_decay": 0.0}
            for rule in rules:
                if re.search(rule.match, name):
                    own = rule.settings()
                    settings = {
                        k: v for k, v in settings.items() if not (k[:2] == "lr" and {"lr", "lr_factor"} & {*own})
                    }
                    settings |= own
            key = tuple(sorted(settings.items()))
            if key not in groups:
                groups[key] = [{"params": [], **settings}]
                found += groups[key]
            groups[key][0]["params"].append(parameter)
    return found


def checked_optimizer(make: Callable[[ParamGroups], Optimizer], groups: ParamGroups) -> Optimizer:
    """Make the optimizer, and turn each group's ``lr_factor`` into a rate.

    Raises:
        UserError: it refuses its settings or its parameters, or evaluates its closure more than once.
    """
    try:
        optimizer = fuse(make(groups))
    except (ValueError, TypeError) as error:
        message = f"The optimizer refuses its settings: {error}"
        others = sum(p.ndim != 2 for group in groups for p in group["params"])
        if others and "2D" in str(error):
            message = (
                f"The optimizer takes matrices only, and {others} of the trainable parameters are none, such as norms "
                f"and biases ({error}). Train an adapter such as peft.LoraConfig, whose weights are matrices all, or "
                "use an optimizer for parameters of any shape, such as torch.optim.AdamW."
            )
        raise UserError(message) from error
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UserError(
            "LBFGS evaluates the loss several times a step, but a step's gradient is gathered once from its "
            "micro-batches. Use an optimizer that takes one gradient a step, such as torch.optim.AdamW."
        )
    for group in optimizer.param_groups:
        factor = group.pop("lr_factor", None)
        if factor is not None:
            group["lr"] = group["lr"] * factor
    return optimizer


def describe_optimizer(optimizer: Optimizer) -> str:
    """Return the optimizer's class with its settings, such as ``AdamW(betas=(0.9, 0.999), lr=0.001, ...)``."""
    settings = ", ".join(f"{key}={value}" for key, value in sorted(optimizer.defaults.items()))
    return f"{type(optimizer).__name__}({settings})"


@dataclass(frozen=True)
class OptimizationSettings:
    """How parameters are grouped and how their rates change; see `SFTModule`."""

    lr_scheduler: MakeScheduler | ScheduleName = "linear"
    warmup_steps: int | None = None
    warmup_ratio: float = 0.0
    lr_scheduler_kwargs: dict[str, Any] | None = None
    lr_scheduler_config: dict[str, Any] | None = None
    parameter_rules: list[ParameterRule] | None = None

    @classmethod
    def among(cls, given: dict[str, Any]) -> OptimizationSettings:
        """Return the settings among others."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})

    def configure(
        self, make: Callable[[ParamGroups], Optimizer], module: nn.Module, total_steps: float
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Make optimizer and scheduler.

        Args:
            make: makes the optimizer from groups.
            module: whose trainable parameters are optimized.
            total_steps: optimizer steps of the run; infinite when unknown.

        Returns:
            What Lightning's ``configure_optimizers`` returns, and descriptions of both.

        Raises:
            UserError: settings that cannot work.
        """
        optimizer = checked_optimizer(make, parameter_groups(module, self.parameter_rules or ()))
        warmup = warmup_length(total_steps, self.warmup_steps, self.warmup_ratio)
        scheduler = schedule(optimizer, self.lr_scheduler, total_steps, warmup, self.lr_scheduler_kwargs)
        config = scheduler_config(scheduler, self.lr_scheduler_config)
        named = self.lr_scheduler if isinstance(self.lr_scheduler, str) else type(scheduler).__name__
        facts = {"optimizer": describe_optimizer(optimizer), "lr_scheduler": named}
        return {"optimizer": optimizer, "lr_scheduler": config}, facts
