"""What to change so that a run fits, cheapest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig

from lightning_sft.errors import UserError
from lightning_sft.estimate.run import PlannedRun
from lightning_sft.estimate.spread import DeviceMemory
from lightning_sft.estimate.step import StepMemory, StepPlan


@dataclass(frozen=True)
class Lever:
    """A change of a run.

    Attributes:
        name: what is changed.
        how: settings of the command line that do it.
        price: what it costs beside memory.
        held: what a device holds then; None where it could not be tried.
        why_not: says why.
    """

    name: str
    how: str
    price: str
    held: DeviceMemory | None
    why_not: str = ""


def levers(run: PlannedRun, longest: int | None = None, mean: float | None = None) -> list[Lever]:
    """Return what can be changed, each by itself: first what leaves the gradient alone; nothing that cannot run there.

    Args:
        run: as configured.
        longest: tokens of the longest training row, where they are known.
        mean: tokens of a row on average.
    """
    found: list[Lever] = []

    def add(name: str, how: str, price: str, make: Callable[[], PlannedRun]) -> None:
        try:
            found.append(Lever(name, how, price, make().held()))
        except UserError as error:
            found.append(Lever(name, how, price, None, str(error)))

    step, model = run.step, run.step.model
    if step.padded and longest and mean and mean < longest:
        tokens = max(1, round(step.rows * mean))
        add(
            "flat rows",
            "--data.layout flat",
            "none: the same gradient; batches of long rows are larger than this average",
            lambda: run.changed(step={"rows": 1, "length": tokens, "padded": False}),
        )
    if step.rows > 1:
        add(
            "smaller micro-batches",
            f"--data.batch_size 1 --trainer.accumulate_grad_batches {run.accumulate * step.rows}",
            "the same gradient; devices work less well on little",
            lambda: run.changed(step={"rows": 1, "accumulates": True}),
        )
    if not model.gradient_checkpointing:
        add(
            "gradient checkpointing",
            "--model.gradient_checkpointing true",
            "the same gradient; a third more time",
            lambda: run.changed(model={"gradient_checkpointing": True}),
        )
    if run.devices > 1 and run.strategy in ("single", "ddp"):
        add(
            "sharding",
            "--config configs/strategy/fsdp2.yaml",
            "the same gradient; layers are sent while they are needed",
            lambda: run.changed(strategy="fsdp2"),
        )
    if run.gpu and run.memory.states > 2 * run.memory.parameters[1]:
        small = replace(run.memory, states=2 * run.memory.parameters[1] * (1 + 8 // 256))
        add(
            "8-bit optimizer",
            f"--model.optimizer bitsandbytes.optim.AdamW8bit{_rate_option(step)}",
            "states are rounded; needs the extra `quantization`",
            lambda: _with_memory(run, small),
        )
    if not model.has_adapter:
        lora: dict[str, Any] = {"adapter": LoraConfig(r=16, target_modules="all-linear")}
        lora |= {"dtype": "bfloat16"} if run.gpu else {}
        add(
            "LoRA",
            "--adapter lora",
            "another model is trained: rank 16 beside a frozen base; a rate some ten times as high",
            lambda: run.changed(model=lora, reference="none" if run.reference == "frozen" else run.reference),
        )
    elif run.gpu and model.quantization is None and run.strategy in ("single", "ddp"):
        add(
            "nf4 base",
            "--model.quantization nf4",
            "the base is rounded to 4 bits; needs the extra `quantization`",
            lambda: run.changed(model={"quantization": "nf4"}),
        )
    return found


def _rate_option(step: StepPlan) -> str:
    """Return the option that keeps the learning rate under another optimizer; empty where there is none."""
    rate = step.optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}]).param_groups[0].get("lr")
    return "" if rate is None else f" --model.optimizer.lr {float(rate):g}"


def _with_memory(run: PlannedRun, memory: StepMemory) -> PlannedRun:
    other = replace(run)
    other.__dict__["memory"] = memory  # in the place of the cached property's own
    return other
