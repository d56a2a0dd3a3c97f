"""TokenExactModule: optimizer steps whose gradient is exact to the token, however they are split."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_sft._lightning import data_parallel_size_and_rank
from lightning_sft.head import HeadOutput
from lightning_sft.models.mode import eval_mode
from lightning_sft.models.packing import attended
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.objectives import Objective
from lightning_sft.training.accumulation import (
    SCALE,
    Denominator,
    StepTotals,
    Window,
    micro_batch_sums,
    multiply_gradients,
    scaled_loss,
)
from lightning_sft.training.strategies import StrategyAdapter, adapter_of

Batch = dict[str, Tensor]


class TokenExactModule(LightningModule):
    """The training half of `SFTModule`: from a batch to the update of one optimizer step.

    The gradient is that of (sum of the losses over every micro-batch and rank of the step) / (denominator), before
    clipping and before any callback looks at it. A subclass builds ``scorer`` in ``configure_model``.

    Args:
        objective: the loss of a token.
        denominator: ``"all"`` supervised tokens of the step, or those that the objective has ``"kept"``.
    """

    scorer: TokenScorer

    def __init__(self, objective: Objective, denominator: Denominator) -> None:
        super().__init__()
        self.objective = objective
        self.denominator: Denominator = denominator
        self.step_totals = StepTotals()
        self.skipped_steps = 0
        self._window = Window()
        self._step_is_complete = False

    @property
    def strategy_adapter(self) -> StrategyAdapter:
        """What the trainer's strategy needs."""
        return adapter_of(self.trainer)

    @override
    def forward(self, batch: Batch) -> HeadOutput:
        """Score the labels of a batch under the objective; see `TokenScorer.forward`."""
        output = self.scorer(batch, self.objective)
        assert isinstance(output, HeadOutput)
        return output

    @override
    def on_train_start(self) -> None:
        self._window = Window()
        if self.objective.needs_seed():
            self.seed_objective()

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        output = self(batch)
        self._window.add(micro_batch_sums(output, self.objective, attended(batch)))
        accumulate = self.trainer.accumulate_grad_batches
        self._step_is_complete = (batch_idx + 1) % accumulate == 0 or self.trainer.is_last_batch
        factor = self._close_window() if self.strategy_adapter.scales_loss else 1.0
        return {"loss": scaled_loss(output, accumulate, factor), "losses": output.losses, "scores": output.scores}

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # After the strategy's own gradient reduction, and before on_after_backward, on_before_optimizer_step and
        # clipping: nobody sees a gradient of a complete step that is not exact.
        super().backward(loss, *args, **kwargs)
        if self._step_is_complete and not self.strategy_adapter.scales_loss:
            trainable = (p for p in self.scorer.parameters() if p.requires_grad)
            multiply_gradients(trainable, self._close_window())

    def _close_window(self) -> float:
        """Sum up the optimizer step over micro-batches and ranks; return what makes its gradient exact."""
        self.step_totals = self._window.close(self.strategy_adapter.sum_over_rows)
        denominator = self.step_totals.denominator(self.denominator)
        divisions = SCALE * data_parallel_size_and_rank(self.trainer)[0]  # the strategy averages over its ranks
        return divisions / denominator if denominator else 0.0

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        value = gradient_clip_val or 0.0
        if value and self.strategy_adapter.clip(value, gradient_clip_algorithm or "norm"):
            return
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and precision.scaler is None:
            # MixedPrecision refuses optimizers that unscale by themselves, such as fused ones. Nothing is scaled here.
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            super(MixedPrecision, precision).clip_gradients(optimizer, value, algorithm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @override
    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        assert optimizer_closure is not None
        result = optimizer_closure()
        if not self.step_totals.denominator(self.denominator):
            # No token to learn from: no update, no weight decay, no moment decay; counted and logged.
            self.skipped_steps += 1
            return
        super().optimizer_step(epoch, batch_idx, optimizer, lambda: result)
        self.objective.update(self.step_totals.objective())

    @torch.no_grad()
    def seed_objective(self) -> None:
        """Let the objective see the first optimizer step's statistics before the first gradient is made."""
        datamodule = getattr(self.trainer, "datamodule", None)
        loader: Any = self.trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
        window = Window()
        with isolate_rng(), eval_mode(self.scorer):
            for batch in islice(loader, self.trainer.accumulate_grad_batches):
                batch = self.trainer.strategy.batch_to_device(batch)
                window.add(micro_batch_sums(self(batch), self.objective, attended(batch)))
        self.objective.seed(window.close(self.strategy_adapter.sum_over_rows).objective())
