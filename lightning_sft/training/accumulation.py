"""Gradients exact to the token under any split of an optimizer step.

Every micro-batch sends out the gradient of its *sum* of losses; once the last one of the step is through, all
gradients are multiplied by one number, so that they equal the gradient of (sum over all micro-batches and ranks) /
(denominator of the optimizer step), before clipping and before any callback looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from lightning_sft.head import HeadOutput
from lightning_sft.objectives import Objective

Denominator = Literal["all", "kept"]

#: The sums are divided by this before the backward pass and multiplied by it afterwards, so that a loss scaler meets
#: numbers of the size of a mean. A power of two: it changes no bit of a gradient that neither over- nor underflows.
SCALE = 1024.0

_SUMS = ("supervised", "kept", "loss", "nll", "p", "hits", "positions", "padding")


class _WithValue(torch.autograd.Function):
    """A scalar with the value of one tensor and the gradient of another."""

    @staticmethod
    def forward(ctx: Any, differentiable: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def scaled_loss(output: HeadOutput, accumulate: int, factor: float = 1.0) -> Tensor:
    """Return a scalar whose value is the micro-batch's mean loss and whose gradient is that of its sum / ``SCALE``.

    The gradient is multiplied by ``factor``, for strategies that let nobody multiply it later.

    Both are multiplied by ``accumulate`` because Lightning divides by it again: ``outputs["loss"]`` is the mean, and a
    token's gradient does not depend on the split.
    """
    mean = output.losses.sum() / max(output.losses.numel(), 1)
    value = _WithValue.apply(  # type: ignore[no-untyped-call]  # torch types it so
        output.loss_sum * (accumulate * factor / SCALE), mean.to(output.loss_sum.dtype) * accumulate
    )
    assert isinstance(value, Tensor)
    return value


def micro_batch_sums(output: HeadOutput, objective: Objective, attended: Tensor) -> dict[str, Tensor]:
    """Return the sums of one micro-batch: those that every run needs, and the objective's own statistics.

    ``attended`` says which positions are no padding, (batch, length), bool. Keys ``supervised, kept, loss, nll, p,
    hits, positions, padding`` are scalars; the objective's start with ``objective/``.
    """
    scores = output.scores
    is_top1 = scores.is_top1 if scores.is_top1 is not None else torch.zeros_like(scores.logp, dtype=torch.bool)
    sums = {
        "supervised": torch.tensor(len(scores), device=scores.logp.device),
        "kept": objective.kept(scores).sum(),
        "loss": output.losses.sum(dtype=torch.float64),
        "nll": -scores.logp.sum(dtype=torch.float64),
        "p": scores.logp.exp().sum(dtype=torch.float64),
        "hits": is_top1.sum(),
        "positions": torch.tensor(attended.numel(), device=scores.logp.device),
        "padding": (attended == 0).sum(),
    }
    own = objective.statistics(scores)
    return {k: v.to(torch.float64) for k, v in sums.items()} | {
        f"objective/{k}": v.to(torch.float64) for k, v in own.items()
    }


class StepTotals(dict[str, Tensor]):
    """Sums over one whole optimizer step: every micro-batch, every rank."""

    def denominator(self, kind: Denominator) -> float:
        """Return the number that the step's gradient is divided by."""
        return float(self["supervised" if kind == "all" else "kept"])

    def objective(self) -> dict[str, Tensor]:
        """Return the objective's own sums."""
        return {k.removeprefix("objective/"): v for k, v in self.items() if k.startswith("objective/")}

    def mean(self, key: str) -> float:
        """Return a sum divided by the number of supervised tokens; nan without any."""
        tokens = float(self["supervised"])
        return float(self[key]) / tokens if tokens else float("nan")

    def __missing__(self, key: str) -> Tensor:
        raise KeyError(f"{key!r} is not among the sums of an optimizer step: {sorted(self)}")


class Window:
    """Sums of the micro-batches of the optimizer step under way, on this rank."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def __len__(self) -> int:
        """Return the number of micro-batches in the window."""
        return self._count

    def add(self, sums: dict[str, Tensor]) -> None:
        """Add one micro-batch."""
        self._count += 1
        self._sums = {k: self._sums[k] + v for k, v in sums.items()} if self._sums else dict(sums)

    def close(self, reduce: Callable[[Tensor], Tensor]) -> StepTotals:
        """Sum over the ranks in one collective, empty the window and return the totals.

        Args:
            reduce: sums a vector over all ranks that see different rows.
        """
        flat = reduce(torch.cat([v.reshape(-1) for v in self._sums.values()]))
        parts = flat.split([v.numel() for v in self._sums.values()])
        totals = StepTotals((k, part.view_as(v)) for (k, v), part in zip(self._sums.items(), parts, strict=True))
        self._sums, self._count = {}, 0
        return totals


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
