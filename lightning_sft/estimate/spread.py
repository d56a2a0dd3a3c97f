"""What one of several devices holds of a step, by strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_sft.estimate.step import StepMemory

Strategy = Literal["single", "ddp", "fsdp2", "fsdp", "deepspeed_2", "deepspeed_3"]
#: strategies whose numbers no run has been held against
UNMEASURED = ("fsdp", "deepspeed_2", "deepspeed_3")
GIB = 2**30
#: share of a GPU's memory that is not counted on: blocks that its allocator cannot use. An assumption
SPARE = 0.05
#: bytes of CUDA's context and of the workspaces of its libraries. An assumption
CONTEXT = int(0.8 * GIB)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device.

    Attributes:
        weights: of the model and its adapter.
        gradients: once all are complete.
        states: of the optimizer.
        reference: a frozen reference model or a snapshot.
        activations: kept for the backward pass.
        head: buffers and gradients of the head beside them.
        gathered: whole layers, and copies for sending, that a strategy makes for a while.
        kept: what is there throughout: weights, states, reference, gathered.
        moving: the most of everything else at once.
        peak: the most at once, which is less than the sum: not everything is there at the same time.
    """

    weights: int
    gradients: int
    states: int
    reference: int
    activations: int
    head: int
    gathered: int
    kept: int
    moving: int
    peak: int


def on_device(step: StepMemory, strategy: Strategy, ranks: int, reference: int, *, gpu: bool) -> DeviceMemory:
    """Return what one device holds.

    Args:
        step: of a device that holds everything.
        strategy: how it is spread.
        ranks: that see different rows.
        reference: bytes of a reference model of its own.
        gpu: else the memory is that of the host.
    """
    shards = 1 if strategy in ("single", "ddp") else ranks
    shares_weights = strategy in ("fsdp2", "fsdp", "deepspeed_3")
    weights = step.weights // shards if shares_weights else step.weights
    own_reference = reference // shards if shares_weights else reference
    gathered, moving = 0, step.moving(1 / shards)
    if strategy == "ddp":
        gathered = step.trained  # the buckets that are sent are copies
    elif shares_weights:
        # whole while needed: two layers and what is outside of them; copies of gradients are sent when these are gone
        gathered, moving = step.root[0] + 2 * step.layer[0], step.moving_whole(1 / shards)
    kept = weights + step.states // shards + own_reference + gathered
    peak = kept + moving + (CONTEXT if gpu else 0)
    return DeviceMemory(
        weights=weights,
        gradients=step.trained // shards,
        states=step.states // shards,
        reference=own_reference,
        activations=step.activations,
        head=step.head,
        gathered=gathered,
        kept=kept,
        moving=moving,
        peak=peak,
    )


def fits(memory: DeviceMemory, gib: float, *, gpu: bool) -> bool:
    """Return whether it fits into so many GiB, of which a GPU's allocator is left a part."""
    return memory.peak <= gib * GIB * (1 - SPARE if gpu else 1)
