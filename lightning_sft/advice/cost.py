"""What a fit will cost: seconds of a step from a few measured ones, memory, and the time of the whole."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_sft.sweep.session import Session, SweepSettings
from lightning_sft.sweep.trial import Values


@dataclass(frozen=True)
class Cost:
    """Measured and estimated cost of a fit.

    Attributes:
        measured_steps: optimizer steps that were measured, after one that was not.
        seconds_per_step: their median.
        steps: optimizer steps of the fit; None if unknown.
        validations: complete validations of the fit.
        validates_first: whether one of them is before the first step.
        seconds_per_validation: estimated from forward passes; None if unknown.
        seconds: of the steps and validations; None if the number of steps is unknown. Not in it: loading, what
            monitors read, generated answers and saving.
        peak_memory: bytes, the largest so far: of the GPU, or of the process on a CPU.
        copy_memory: bytes of what trains and its optimizer state, of which a copy was held meanwhile.
        device: where it was measured.
    """

    measured_steps: int
    seconds_per_step: float
    steps: int | None
    validations: int
    validates_first: bool
    seconds_per_validation: float | None
    seconds: float | None
    peak_memory: int
    copy_memory: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dict(vars(self))


class StepClock:
    """An observer of trials that notes the time after each optimizer step."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def read(self, trainer: Trainer, module: LightningModule) -> Values:
        """Note the time, and return nothing."""
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())
        return {}

    def steps(self) -> list[float]:
        """Return the seconds of each step but the first, which warms up."""
        return [later - earlier for earlier, later in pairwise(self._times)]


def time_steps(trainer: Trainer, module: LightningModule, steps: int, rate: float) -> list[float]:
    """Return the seconds of a few optimizer steps, which are taken from a snapshot.

    Args:
        trainer: in a fit, before its first step.
        module: its module.
        steps: how many to measure, after one that warms up.
        rate: learning rate meanwhile; the weights are put back.
    """
    clock = StepClock()
    with Session(trainer, module, SweepSettings("cost", steps + 1, None, divergence=float("inf")), [clock]) as session:
        session.trial(rate, [clock])
    return clock.steps()


def cost_of_fit(
    trainer: Trainer,
    module: LightningModule,
    taken: Sequence[float],
    seconds_of_validation: float | None,
    *,
    validates_first: bool = False,
) -> Cost:
    """Say what a fit will cost.

    Args:
        trainer: in a fit, before its first step.
        module: its module.
        taken: seconds of some optimizer steps; one or more.
        seconds_of_validation: what a complete validation takes; None if unknown.
        validates_first: whether the fit, unlike this one, validates completely before its first step.
    """
    per_step = statistics.median(taken)
    total = trainer.estimated_stepping_batches
    known = None if total == float("inf") else int(total)
    validates_first = validates_first and trainer.enable_validation
    validations = _validations(trainer, known) + validates_first
    whole = None if known is None else known * per_step + validations * (seconds_of_validation or 0.0)
    trained = [p for p in module.parameters() if p.requires_grad]
    return Cost(
        measured_steps=len(taken),
        seconds_per_step=per_step,
        steps=known,
        validations=validations,
        validates_first=validates_first,
        seconds_per_validation=seconds_of_validation,
        seconds=whole,
        peak_memory=_peak(module.device),
        copy_memory=3 * sum(p.numel() * p.element_size() for p in trained),
        device=_name(module.device),
    )


def _validations(trainer: Trainer, steps: int | None) -> int:
    """Return how many complete validations the fit will make from its first step on, so far as its settings say."""
    every = trainer.val_check_batch
    if not trainer.enable_validation or steps is None or every in (None, 0) or every == float("inf"):
        return 0
    return max(int(steps * trainer.accumulate_grad_batches // every), 1)  # where none is due, one ends the fit


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads > 1)}"
