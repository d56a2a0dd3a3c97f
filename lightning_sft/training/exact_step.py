"""The optimizer steps of SFTModule under a Lightning trainer: exact to the token, with a subclass's terms, watched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_sft._lightning import has_hook, step_is_complete
from lightning_sft.head import HeadOutput
from lightning_sft.metrics.sets import sums_by_source
from lightning_sft.models.packing import attended
from lightning_sft.objectives import Objective
from lightning_sft.objectives.base import Denominator
from lightning_sft.training import start
from lightning_sft.training.accumulation import StepAccumulator, backward_loss, micro_batch_sums
from lightning_sft.training.extra_loss import ExtraLoss
from lightning_sft.training.gradients import multiply_gradients
from lightning_sft.training.nonfinite import LossWatch, OnNonfinite
from lightning_sft.training.strategies import adapter_of
from lightning_sft.training.totals import SUM_OF


class ExactSteps:
    """From the scores of micro-batches to the gradient that the optimizer sees.

    Args:
        denominator: what gradients are divided by.
        on_nonfinite: what follows a loss that is not finite.

    Attributes:
        accumulator: sums of the step under way.
        watch: looks at the losses of every step.
        extra: joins the terms that a subclass adds.
    """

    def __init__(self, denominator: Denominator, on_nonfinite: OnNonfinite) -> None:
        self.accumulator = StepAccumulator(denominator)
        self.watch = LossWatch(on_nonfinite)
        self.extra = ExtraLoss()

    def reset(self) -> None:
        """Forget a step that was never finished."""
        self.accumulator.reset()
        self.extra.reset()
        self.watch.forget()

    def before_forward(self, trainer: Trainer) -> None:
        """Free the gradients of the step before, which Lightning keeps until after the forward pass.

        Activations take their place: the peak of memory is lower by one copy of what trains. Nothing is freed early
        where a callback or the module has a hook that may read them then, or where the module zeroes them its own way.
        """
        if self.accumulator.open_micro_batches == 0 and not (
            has_hook(trainer, "on_before_zero_grad") or has_hook(trainer, "optimizer_zero_grad", [])
        ):
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()

    def loss(self, output: HeadOutput, batch: Mapping[str, Tensor], objective: Objective, trainer: Trainer) -> Tensor:
        """Add a micro-batch to the step, and return its loss for the backward pass."""
        self.watch.see(output, batch)
        sums = micro_batch_sums(output, objective, attended(batch))
        sources = start.number_of_sources(trainer)
        if sources > 1:
            sums |= sums_by_source(output.scores, sources)
        loss_sum = with_model_losses(output, sums, self.accumulator.denominator)
        self.accumulator.add_sums(sums)
        factor = self._close(trainer) if adapter_of(trainer).scales_loss else 1.0
        mean = self.accumulator.mean_loss(sums).to(output.loss_sum)
        self.extra.own = loss = backward_loss(loss_sum, mean, trainer.accumulate_grad_batches, factor)
        return loss

    def joined(self, returned: Any, trainer: Trainer, parameters: Callable[[], Iterable[Tensor]]) -> Any:
        """Return what a subclass's ``training_step`` has returned, its ``extra_loss`` joined to the loss."""
        term, scaled = self.extra.read(returned), adapter_of(trainer).scales_loss
        micro_batches = self.accumulator.open_micro_batches
        if term is not None and not scaled and not bool(torch.isfinite(term)):
            self.watch.see_extra()
            self.accumulator.mark_nonfinite()
        last = None
        if step_is_complete(trainer):
            last = 1.0 if scaled else self._close(trainer)
            self.extra.factor = None if scaled else last
        else:
            self.extra.hold(term, parameters())
        count = {"micro_batches": max(micro_batches, 1), "divided_by": trainer.accumulate_grad_batches}
        loss = self.extra.joined(term, last=last, **count)
        self.extra.own = None
        return {**returned, "loss": loss} if isinstance(returned, Mapping) else loss

    def backward_options(self) -> dict[str, bool]:
        """Return what the backward pass of the present loss needs."""
        return {"retain_graph": True} if self.extra.keeps_graph else {}

    def after_backward(self, trainer: Trainer, parameters: Iterable[Tensor]) -> None:
        """Make the gradients of a complete step exact."""
        self.extra.own = None
        if step_is_complete(trainer) and not adapter_of(trainer).scales_loss:
            known = self.extra.taken()
            trained = (p for p in parameters if p.requires_grad)
            multiply_gradients(trained, self._close(trainer) if known is None else known)

    def _close(self, trainer: Trainer) -> float:
        """Sum the step over micro-batches and ranks, and return what its gradients are to be multiplied by."""
        factor = self.accumulator.close(adapter_of(trainer))
        self.watch.answer(self.accumulator.totals, trainer.global_step)
        return factor


def with_model_losses(output: HeadOutput, sums: dict[str, Tensor], denominator: Denominator) -> Tensor:
    """Return the sum of a micro-batch's losses, those of the micro-batch as a whole included.

    Such a loss, as that of a router, belongs to a mean: it counts once for each token that the step divides by. Over
    a step it is the mean of the micro-batches' own losses, weighted by their tokens. It is no sum over tokens, so
    other splits of a step give other values, as in every trainer.

    Args:
        output: what the head returned.
        sums: of the micro-batch; gets the extra losses as ``extra/...``.
        denominator: what the step divides by.
    """
    tokens = sums[SUM_OF[denominator]]
    total = output.loss_sum
    for name, loss in output.model_losses.items():
        sums[f"extra/{name}"] = loss.detach().to(tokens) * tokens
        total = total + loss * tokens.to(total)
    return total
