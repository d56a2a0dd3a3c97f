"""Gradients as they lie over the ranks: their norm, and multiplication by one number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.optim import Optimizer


def _by_placement(gradients: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group gradients by how they are spread over ranks: torch works on several DTensors at once on one mesh only."""
    groups: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        spread = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else gradient.device
        groups.setdefault((spread, gradient.dtype), []).append(gradient)
    return list(groups.values())


@torch.no_grad()
def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, (), in fp32 or float64, whole on every rank, however sharded."""
    norms = []
    for group in _by_placement(gradients):
        first = group[0]
        local = [g.to_local() if isinstance(g, DTensor) else g for g in group]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(_norms(local)))
        if isinstance(first, DTensor):
            parts = [Replicate() if place.is_replicate() else Partial() for place in first.placements]
            norm = DTensor.from_local(norm.square(), first.device_mesh, parts).full_tensor().sqrt()
        norms.append(norm)
    if not norms:
        return torch.zeros(())
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Return the 2-norm of each tensor, (), in fp32 or float64.

    On a CPU torch copies 16-bit tensors whole for that. Here they pass through one piece of memory.
    """
    first = tensors[0]
    dtype = torch.promote_types(first.dtype, torch.float32)
    if first.device.type != "cpu" or first.dtype == dtype:
        return list(torch._foreach_norm(tensors, 2.0, dtype=dtype))
    piece = torch.empty(min(_PIECE, max(t.numel() for t in tensors)), dtype=dtype)
    return [
        torch.linalg.vector_norm(
            torch.stack(
                [torch.linalg.vector_norm(piece[: len(part)].copy_(part)) for part in t.reshape(-1).split(_PIECE)]
            )
        )
        for t in tensors
    ]


_PIECE = 2**20
"""Entries of a gradient that are widened at once: 4 MiB, which a processor's cache holds."""


class SharedNorm:
    """The norm of an optimizer's gradients, measured once a step for whoever asks: the log, then clipping.

    Args:
        optimizer: whose gradients.
        measure: returns their norm, or None where nobody can see them.
    """

    def __init__(self, optimizer: Optimizer, measure: Callable[[Iterable[Tensor]], Tensor | None]) -> None:
        self.optimizer, self.measure = optimizer, measure

    def _gradients(self) -> list[Tensor]:
        return [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def look(self, keep: bool = False) -> Tensor | None:
        """Return the norm.

        Args:
            keep: for `clip`; only where nothing may write to the gradients before it.
        """
        gradients = self._gradients()
        norm = self.measure(gradients)
        if keep:
            _KEPT[self.optimizer] = (_state(gradients), norm)
        return norm

    def clip(self, largest: float) -> bool:
        """Scale the gradients down to a norm, writing them only where they exceed it; False where nobody can see it.

        A norm that `look` has kept serves if no gradient has changed since.
        """
        gradients = self._gradients()
        state, norm = _KEPT.pop(self.optimizer, (None, None))
        if state != _state(gradients):
            norm = self.measure(gradients)
        if norm is None:
            return False
        clip_to_norm(gradients, norm, largest)
        return True


_KEPT: WeakKeyDictionary[Optimizer, tuple[list[tuple[int, int]], Tensor | None]] = WeakKeyDictionary()


def _state(gradients: Iterable[Tensor]) -> list[tuple[int, int]]:
    """Return what changes when a gradient is replaced or written to, but for writes through ``.data``."""
    return [(id(gradient), gradient._version) for gradient in gradients]


@torch.no_grad()
def clip_to_norm(gradients: list[Tensor], norm: Tensor, largest: float) -> None:
    """Scale gradients whose norm is known down to ``largest``, as ``torch.nn.utils.clip_grad_norm_`` does.

    On a CPU, and where gradients are sharded, they are left alone if they are small enough; elsewhere the norm is not
    read back from the device.
    """
    share = largest / (norm + 1e-6)
    if norm.device.type == "cpu" or any(isinstance(g, DTensor) for g in gradients):
        if not float(share) >= 1:  # so that NaN goes on into the gradients, as torch has it
            for group in _by_placement(gradients):
                torch._foreach_mul_(group, float(share))
        return
    for group in _by_placement(gradients):
        torch._foreach_mul_(group, share.clamp(max=1.0).to(group[0].device))


@torch.no_grad()
def multiply_gradients(parameters: Iterable[Tensor], factor: float) -> None:
    """Multiply the gradients in place; factor 0 sets them to zero, whatever they hold."""
    for gradients in _by_placement(p.grad for p in parameters if p.grad is not None):
        if factor == 0:
            torch._foreach_zero_(gradients)
        else:
            torch._foreach_mul_(gradients, factor)
