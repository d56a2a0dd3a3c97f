"""A run as far as its memory goes: its step, its strategy, its reference model; and what it will hold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lightning_sft.errors import UserError
from lightning_sft.estimate.bare import bare_model, bytes_of, read_config
from lightning_sft.estimate.spread import DeviceMemory, Strategy, on_device
from lightning_sft.estimate.step import StepMemory, StepPlan, dtype_of, try_step
from lightning_sft.models.build import ModelSettings


@dataclass(frozen=True)
class PlannedRun:
    """What is asked.

    Attributes:
        step: of the run.
        strategy: how it is spread over devices.
        devices: number of them, on all nodes together.
        gpu: whether they are GPUs.
        reference: ``"none"``, ``"frozen"`` for a model of its own, ``"snapshot"`` for a copy of what trains.
        accumulate: micro-batches of a step.
        config: of the model, read from its source.
    """

    step: StepPlan
    strategy: Strategy
    devices: int
    gpu: bool
    config: Any
    reference: str = "none"
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Check that the devices can be shared out.

        Raises:
            UserError: they cannot.
        """
        if self.devices < 1:
            raise UserError(f"--devices is {self.devices}. Allowed: 1 or more.")
        if self.devices % self.step.splits:
            raise UserError(
                f"{self.devices} devices cannot be shared out in groups of tensor_parallel_size {self.step.splits}. "
                "Give a multiple of it."
            )
        if self.strategy == "single" and self.devices > 1:
            raise UserError(f"One device was configured, and --devices is {self.devices}. Set a trainer.strategy.")

    @property
    def ranks(self) -> int:
        """Devices that see different rows."""
        return self.devices // self.step.splits

    @cached_property
    def memory(self) -> StepMemory:
        """What a device would hold that does everything."""
        return try_step(self.step, self.config)

    @cached_property
    def reference_bytes(self) -> int:
        """Of the reference model, whole."""
        if self.reference == "none":
            return 0
        if self.reference == "snapshot":
            return self.memory.trained
        settings = self.step.model
        own = ModelSettings(settings.reference or settings.name, trust_remote_code=settings.trust_remote_code)
        config = self.config if settings.reference is None else read_config(own)
        dtype = settings.dtype if settings.reference is None else dtype_of(settings.reference_dtype, config)
        model = bare_model(replace(own, dtype=dtype), config)
        return bytes_of(model.parameters())

    def held(self, strategy: Strategy | None = None) -> DeviceMemory:
        """Return what one device holds, under the run's own strategy or another one."""
        return on_device(self.memory, strategy or self.strategy, self.ranks, self.reference_bytes, gpu=self.gpu)

    def changed(self, *, model: dict[str, Any] | None = None, step: dict[str, Any] | None = None, **own: Any) -> Any:
        """Return the run with other settings."""
        plan = self.step if model is None else replace(self.step, model=replace(self.step.model, **model))
        return replace(self, step=replace(plan, **(step or {})), **own)
