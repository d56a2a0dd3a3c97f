"""What a run computed, kept for comparison."""

from typing import Any

import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import DTensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, gathered from its shards by all ranks."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


class KeepTrajectory(Callback):
    """Write the gradients that callbacks see before each optimizer step, and the weights at the end.

    Args:
        path: file to write, by the first rank.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.scorer.named_parameters()
        self.steps.append({name: whole(p.grad) for name, p in named if p.grad is not None})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        weights = {name: whole(p) for name, p in pl_module.scorer.named_parameters()}
        if trainer.is_global_zero:
            torch.save({"gradients": self.steps, "weights": weights}, self.path)
