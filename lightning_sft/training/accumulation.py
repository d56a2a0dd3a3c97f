"""Gradients exact to the token under any split of an optimizer step.

Every micro-batch sends out the gradient of its *sum* of losses; once the last one of the step is through, all
gradients are multiplied by one number, so that they equal the gradient of (sum over all micro-batches and ranks) /
(denominator of the optimizer step).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.head import HeadOutput
from lightning_sft.metrics.wide import wide, wide_device
from lightning_sft.models.scorer import Weighting
from lightning_sft.objectives import Objective
from lightning_sft.objectives.base import Denominator
from lightning_sft.training.gradients import multiply_gradients
from lightning_sft.training.totals import OBJECTIVE, SUM_OF, StepTotals

#: The sums are divided by this before the backward pass and multiplied by it afterwards, so that a loss scaler meets
#: numbers of the size of a mean. A power of two: it changes no bit of a gradient that neither over- nor underflows.
SCALE = 1024.0


class Ranks(Protocol):
    """The ranks that see different rows of a step, over which gradients are averaged."""

    @property
    def data_parallel_size(self) -> int:
        """Their number."""

    def sum_over_rows(self, sums: Tensor) -> Tensor:
        """Return the sum of a vector over them; may work in place."""


class AllRanks:
    """Every rank of torch's process group, as under DDP and FSDP; without one, this process alone."""

    @property
    def data_parallel_size(self) -> int:
        """Number of ranks."""
        distributed = torch.distributed
        return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1

    def sum_over_rows(self, sums: Tensor) -> Tensor:
        """Sum a vector over the ranks, in place."""
        if self.data_parallel_size > 1:
            torch.distributed.all_reduce(sums)
        return sums


class StepAccumulator:
    """Makes the gradient of an optimizer step exact to the token, in any training loop.

    Call `add` with the sum of the losses of each micro-batch and run the backward pass of what it returns; call
    `finish` after the last backward pass of the step, before clipping. The gradients are then those of (sum of the
    losses over every micro-batch and rank) / (tokens of the whole step), however the step was split::

        for batch in micro_batches:
            losses = ...  # (tokens,)
            steps.add(losses.sum(), tokens=losses.numel()).backward()
        if steps.finish(model.parameters()):
            optimizer.step()
        optimizer.zero_grad()

    Args:
        denominator: ``"all"``: gradients are divided by the supervised tokens of the step; ``"weights"``: by the sum of
            their absolute weights; ``"kept"``: by those that an objective keeps, and ``"sequences"``: by the number of
            sequences, both of which only `add_sums` can tell.

    Attributes:
        totals: sums of the last complete step over its micro-batches and ranks; empty before the first step ends.
        skipped_steps: complete steps so far that changed nothing: without a token to learn from, or with a loss that is
            not finite.
    """

    def __init__(self, denominator: Denominator = "all") -> None:
        self.denominator: Denominator = denominator
        self.totals = StepTotals()
        self.skipped_steps = 0
        self._sums: dict[str, Tensor] = {}
        self._open = 0

    @property
    def weighting(self) -> Weighting:
        """How a scorer must weigh the tokens' losses for this denominator."""
        return "sequences" if self.denominator == "sequences" else "tokens"

    def mean_loss(self, sums: dict[str, Tensor]) -> Tensor:
        """Return the mean loss of one micro-batch, scalar: what callbacks and progress bars see; 0 without tokens."""
        total = sums["supervised" if self.denominator == "kept" else SUM_OF[self.denominator]]
        return sums["loss"] / total.clamp_min(torch.finfo(total.dtype).tiny)

    @property
    def open_micro_batches(self) -> int:
        """Micro-batches of the optimizer step under way, on this rank."""
        return self._open

    def reset(self) -> None:
        """Forget the micro-batches of a step that was never finished, as where an interrupted fit starts again."""
        self._sums, self._open = {}, 0

    def add(self, loss_sum: Tensor, tokens: float | Tensor, *, divided_by: int = 1) -> Tensor:
        """Add a micro-batch to the step and return the loss to run the backward pass of.

        Args:
            loss_sum: sum of its losses, scalar, with its graph. Not their mean.
            tokens: how many losses were summed, or the sum of their absolute weights; 0 or more.
            divided_by: what the caller's framework divides the returned loss by: ``accumulate_grad_batches`` in
                automatic optimization under Lightning, 1 in manual optimization and in loops of your own.

        Returns:
            A scalar with the value of the micro-batch's mean loss, times ``divided_by``.

        Raises:
            UserError: ``loss_sum`` is no scalar, or the denominator is ``"sequences"``.
        """
        if self.denominator == "sequences":
            raise UserError('StepAccumulator("sequences") is not told the sequences by add. Use add_sums.')
        if loss_sum.numel() != 1:
            raise UserError(
                f"StepAccumulator.add got losses of shape {tuple(loss_sum.shape)}. It needs their sum: losses.sum()."
            )
        loss_sum = loss_sum.reshape(())
        total = wide(loss_sum.detach())
        count = wide(torch.as_tensor(tokens, device=loss_sum.device).detach()).reshape(())
        sums = {"supervised": count, "kept": count, "weights": count, "loss": total, "nonfinite": _not_finite(total)}
        self.add_sums(sums)
        mean = total / count.clamp_min(torch.finfo(torch.float64).tiny)
        return backward_loss(loss_sum, mean.to(loss_sum), divided_by)

    def add_sums(self, sums: dict[str, Tensor]) -> None:
        """Add the sums of a micro-batch, whose loss is made by `backward_loss`.

        Args:
            sums: scalars and vectors in float64, the same keys and shapes in every micro-batch of a step; among them
                ``supervised``, what `SUM_OF` names for the denominator and, where losses may not be finite,
                ``nonfinite`` (whether one is, 0 or 1).
        """
        self._open += 1
        self._sums = {k: self._sums[k] + v for k, v in sums.items()} if self._sums else dict(sums)

    def mark_nonfinite(self) -> None:
        """Say that something in the step under way is not finite, beside the losses themselves."""
        self._sums["nonfinite"] = self._sums["nonfinite"] + 1

    def close(self, ranks: Ranks | None = None) -> float:
        """End the step: sum over the ranks in one collective, and start the next step.

        Args:
            ranks: those that see different rows; default is every rank of torch's process group.

        Returns:
            The number that the gradients must be multiplied by to be exact; 0 where there is nothing to divide by, or a
            loss of any rank is not finite.

        Raises:
            UserError: no micro-batch was added.
        """
        if not self._open:
            raise UserError("An optimizer step ends without a micro-batch. Call StepAccumulator.add for each of them.")
        ranks = ranks or AllRanks()
        flat = ranks.sum_over_rows(torch.cat([v.reshape(-1) for v in self._sums.values()]))
        here = flat.cpu()  # the one time in a step that the device is waited for
        sizes = [v.numel() for v in self._sums.values()]
        parts = zip(self._sums.items(), flat.split(sizes), here.split(sizes), strict=True)
        self.totals = StepTotals(
            (k, (there if k.startswith(OBJECTIVE) else read).view_as(v)) for (k, v), there, read in parts
        )
        self.reset()
        self.skipped_steps += not self.learned
        if not self.learned:
            return 0.0
        return SCALE * ranks.data_parallel_size / self.totals.denominator(self.denominator)

    def finish(self, parameters: Iterable[Tensor], ranks: Ranks | None = None) -> bool:
        """End the step and make the gradients exact, in place: after the last backward pass, before clipping.

        Args:
            parameters: whose gradients to multiply: all that the step has trained. Frozen ones are passed over.
            ranks: see `close`.

        Returns:
            Whether there was a token to learn from and every loss was finite. If not, all gradients are 0, and the
            optimizer should not step: weight decay and moments would move the weights on.
        """
        multiply_gradients((p for p in parameters if p.requires_grad), self.close(ranks))
        return self.learned

    @property
    def learned(self) -> bool:
        """Whether the last complete step had a token to learn from, and finite losses only."""
        if not self.totals or float(self.totals.get("nonfinite", 0.0)):
            return False
        return self.totals.denominator(self.denominator) != 0


def accumulator_of(module: object) -> StepAccumulator | None:
    """Return the `StepAccumulator` among a module's attributes; None if there is none, or more than one."""
    found = [value for value in vars(module).values() if isinstance(value, StepAccumulator)]
    return found[0] if len(found) == 1 else None


class WithValue(torch.autograd.Function):
    """A scalar with the value of one tensor and the gradient of another."""

    @staticmethod
    def forward(ctx: Any, differentiable: Tensor, value: Tensor) -> Tensor:
        """Return the value of the second."""
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Send the gradient to the first."""
        return grad, None


def backward_loss(loss_sum: Tensor, mean: Tensor, divided_by: int, factor: float = 1.0) -> Tensor:
    """Return a scalar whose value is a micro-batch's mean loss and whose gradient is that of its sum / ``SCALE``.

    Args:
        loss_sum: the sum of the losses, scalar, with its graph.
        mean: their mean, scalar: what callbacks and progress bars see.
        divided_by: multiplies both, because the caller divides by it again: the mean stays a mean, and a token's
            gradient does not depend on the split.
        factor: multiplies the gradient, for strategies that let nobody multiply it later.
    """
    value = WithValue.apply(  # type: ignore[no-untyped-call]  # torch types it so
        loss_sum * (divided_by * factor / SCALE), mean.to(loss_sum.dtype) * divided_by
    )
    assert isinstance(value, Tensor)
    return value


def micro_batch_sums(output: HeadOutput, objective: Objective, attended: Tensor) -> dict[str, Tensor]:
    """Return the sums of one micro-batch: those that every run needs, and the objective's own statistics.

    ``attended`` says which positions are no padding, (batch, length), bool. Keys ``supervised, kept, weights,
    sequences, loss, nll, p, positions, padding, nonfinite`` are scalars, as are ``hits``, if the head has looked for
    them; the objective's start with ``objective/``.
    """
    scores = output.scores
    tokens = torch.tensor(len(scores), device=scores.logp.device)
    row = torch.arange(len(scores), device=tokens.device) if scores.row is None else scores.row
    device = wide_device(scores.logp.device)
    sums = {
        "supervised": tokens,
        "kept": objective.kept(scores).sum(),
        "weights": tokens if scores.weight is None else wide(scores.weight.abs()).sum(),
        # rows come one after the other, so each begins where the number changes
        "sequences": (row[1:] != row[:-1]).sum() + (tokens > 0),
        "loss": wide(output.losses).sum(),
        "nll": -wide(scores.logp).sum(),
        "p": wide(scores.logp.exp()).sum(),
        "positions": torch.tensor(attended.numel(), device=device),
        "padding": (attended == 0).sum(),
        "nonfinite": output.trouble.found if output.trouble else torch.zeros((), dtype=torch.bool, device=device),
    }
    if scores.is_top1 is not None:
        sums["hits"] = scores.is_top1.sum()
    own = {f"{OBJECTIVE}{k}": v for k, v in objective.statistics(scores).items()}
    return {k: wide(v) for k, v in {**sums, **own}.items()}


def _not_finite(total: Tensor) -> Tensor:
    return (~torch.isfinite(total)).to(torch.float64)
