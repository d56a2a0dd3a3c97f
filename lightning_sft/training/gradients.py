"""Gradients as they lie over the ranks: their norm, and multiplication by one number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate


def _by_placement(gradients: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group gradients by how they are spread over ranks: torch works on several DTensors at once on one mesh only."""
    groups: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        spread = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else gradient.device
        groups.setdefault(spread, []).append(gradient)
    return list(groups.values())


@torch.no_grad()
def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, (), whole on every rank, however they are sharded."""
    squares = []
    for group in _by_placement(gradients):
        first = group[0]
        norm = torch.nn.utils.get_total_norm([g.to_local() if isinstance(g, DTensor) else g for g in group])
        square = norm.to(torch.promote_types(norm.dtype, torch.float32)).square()
        if isinstance(first, DTensor):
            parts = [Replicate() if place.is_replicate() else Partial() for place in first.placements]
            square = DTensor.from_local(square, first.device_mesh, parts).full_tensor()
        squares.append(square)
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())


@torch.no_grad()
def multiply_gradients(parameters: Iterable[Tensor], factor: float) -> None:
    """Multiply the gradients in place; factor 0 sets them to zero, whatever they hold."""
    for gradients in _by_placement(p.grad for p in parameters if p.grad is not None):
        if factor == 0:
            torch._foreach_zero_(gradients)
        else:
            torch._foreach_mul_(gradients, factor)
