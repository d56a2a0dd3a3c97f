"""A run's state in memory: what training may change, remembered once and put back in place as often as wanted.

Frozen parameters are not copied, so under an adapter the memory is that of the adapter and its optimizer states.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_sft.checkpoints.state import rng_state, set_rng_state

#: What every nn.Module keeps of its own: hooks, and the three tables that are looked at apart.
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
#: Objects whose attributes are state, too. So are those of classes from the module's own package.
_STATEFUL = (LRScheduler, ReduceLROnPlateau, Optimizer, torch.amp.GradScaler)

Restore = Callable[[], None]


class Snapshot:
    """Everything that training steps change in a run, and the way back.

    Remembered are trainable parameters, all buffers, gradients (by reference), plain attributes of every module (its
    counters, open sums, metrics), optimizers (also with a state that is still empty), schedulers, the loss scaler,
    the given callbacks, and the random streams of Python, NumPy, torch and CUDA. Objects keep their identity:
    tensors are written in place, containers refilled, attributes set back. Shards stay shards: each rank remembers
    its own.

    Args:
        trainer: in a fit, between two optimizer steps.
        module: its module.
        callbacks: callbacks that stay alive in trials and whose attributes are state, too.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, callbacks: Iterable[Callback] = ()) -> None:
        callbacks = tuple(callbacks)
        self._restores: list[Restore] = []
        self._seen: dict[int, object] = {}  # the object is kept so that its id stays its own
        self._packages = {_package(type(o)) for o in (self, module, *callbacks)} - {"lightning", "torch"}
        self._shards = [m for m in module.modules() if isinstance(m, FSDPModule)]
        self._reshard()
        parameters = [*module.parameters(), *_optimized(trainer)]
        for parameter in parameters:
            self._skip(parameter)
        self._trained: list[tuple[Tensor, Tensor]] = []  # this rank's part of each trainable parameter, and its copy
        for parameter in {id(p): p for p in parameters if p.requires_grad}.values():
            self._trained.append(self._tensor(parameter))
            self._gradient(parameter)
        for child in module.modules():
            self._mapping(child._buffers)
            self._attributes(child, skip=_INTERNAL)
        for stateful in (*trainer.optimizers, *(c.scheduler for c in trainer.lr_scheduler_configs), *callbacks):
            self._attributes(stateful)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            self._attributes(scaler)
        streams = rng_state()
        self._restores.append(lambda: set_rng_state(streams))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; may be called any number of times."""
        self._reshard()
        for restore in self._restores:
            restore()

    def moved(self) -> bool:
        """Return whether a trainable parameter of this rank differs from the snapshot now."""
        self._reshard()
        return any(not torch.equal(own, copy) for own, copy in self._trained)

    @property
    def bytes(self) -> int:
        """Memory of the copies on this rank, in bytes."""
        return self._bytes

    _bytes = 0

    def _reshard(self) -> None:
        # After a forward pass without backward, FSDP2 leaves its root gathered: its parameters would be whole.
        for module in self._shards:
            module.reshard()

    # ------------------------------------------------------------------ one kind of object each

    def _skip(self, value: object) -> bool:
        """Return whether an object was met before, and mark it."""
        known = id(value) in self._seen
        self._seen[id(value)] = value
        return known

    def _value(self, value: Any) -> None:
        """Remember what a container or an attribute holds, as far as it can change in place."""
        if isinstance(value, nn.Module) or self._skip(value):
            return  # modules are all visited by themselves
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, dict):
            self._mapping(value)
        elif isinstance(value, list | deque | set):
            self._sequence(value)
        elif isinstance(value, tuple):
            for item in value:
                self._value(item)
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self._restores.append(lambda: _call(value.set_state, state))
        elif isinstance(value, random.Random):
            version = value.getstate()
            self._restores.append(lambda: value.setstate(version))
        elif isinstance(value, np.random.Generator):
            numbers = value.bit_generator.state
            self._restores.append(lambda: setattr(value.bit_generator, "state", numbers))
        elif isinstance(value, _STATEFUL) or (_package(type(value)) in self._packages and hasattr(value, "__dict__")):
            self._attributes(value)

    @torch.no_grad()
    def _tensor(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        own = _local(tensor.detach())
        copy = own.clone()
        self._bytes += copy.numel() * copy.element_size()
        inference = tensor.is_inference()
        self._restores.append(lambda: _copy(own, copy, inference))
        return own, copy

    def _gradient(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        self._restores.append(lambda: setattr(parameter, "grad", gradient))

    def _mapping(self, mapping: MutableMapping[Any, Any]) -> None:
        items = dict(mapping)
        for value in items.values():
            self._value(value)

        def restore() -> None:
            if len(mapping) != len(items) or any(mapping.get(k, items) is not v for k, v in items.items()):
                mapping.clear()
                mapping.update(items)

        self._restores.append(restore)

    def _sequence(self, sequence: list[Any] | deque[Any] | set[Any]) -> None:
        items = list(sequence)
        for value in items:
            self._value(value)

        def restore() -> None:
            sequence.clear()
            (sequence.update if isinstance(sequence, set) else sequence.extend)(items)

        self._restores.append(restore)

    def _attributes(self, owner: object, skip: Iterable[str] = ()) -> None:
        self._seen[id(owner)] = owner
        attributes = vars(owner)
        items = {k: v for k, v in attributes.items() if k not in skip}
        for value in items.values():
            self._value(value)

        def restore() -> None:
            for new in attributes.keys() - items.keys() - set(skip):
                del attributes[new]
            attributes.update(items)

        self._restores.append(restore)


def _optimized(trainer: Trainer) -> list[Tensor]:
    return [p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]]


def _call(function: Callable[[Any], object], argument: object) -> None:
    function(argument)


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copy(target: Tensor, source: Tensor, inference: bool) -> None:
    with torch.inference_mode(inference):
        target.copy_(source)
