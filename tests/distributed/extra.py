"""What the two ranks of a test do: train with a term of a subclass's own, and with losses that are not finite."""

import warnings
from typing import Any

import torch
from torch import Tensor

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from lightning_sft.objectives import NLL
from lightning_sft.scores import TokenScores
from tests.fitting import batches, loader, trainer

RANKS = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}


class Ranked(SFTModule):
    """Adds a term that differs from rank to rank."""

    weight = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        weight = self.weight * (1 + batch_idx) * (1 + self.global_rank)
        term = weight * sum(p.sum() for p in self.parameters())
        return {**super().training_step(batch, batch_idx), "extra_loss": term}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen = torch.cat([p.grad.flatten() for p in self.parameters()]).clone()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def gradients(rank: int, model: str, accumulate: int) -> dict[str, Tensor]:
    """The gradients of a step with and without the term."""
    found = {}
    for name, weight in (("plain", 0.0), ("extra", 1.0)):
        module = Ranked(model, dtype="float64")
        module.weight = weight
        fit = trainer(max_steps=1, accumulate_grad_batches=accumulate, **RANKS)
        fit.fit(module, loader(batches(12, 2)[rank::2]))
        found[name] = module.seen
    return found


class Breaks(NLL):
    """Infinite losses in one row of the data of one rank."""

    broken = -1

    def forward(self, scores: TokenScores) -> Tensor:
        losses = super().forward(scores)
        return losses if self.broken < 0 else losses + torch.where(scores.row == self.broken, torch.inf, 0.0)


def not_finite(rank: int, model: str, action: str) -> dict[str, Any]:
    """What a rank sees where the other one's second step has an infinite loss."""
    objective = Breaks()

    class Module(SFTModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            objective.broken = 1 if batch_idx == 1 and self.global_rank == 1 else -1

    given = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), "lr_scheduler": "constant"}
    module = Module(model, objective=objective, on_nonfinite=action, **given)
    fit = trainer(max_steps=3, **RANKS)
    error = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit.fit(module, loader(batches(12, 2)[rank::2]))
        except UserError as raised:
            error = str(raised)
    warned = [str(w.message) for w in caught if "not finite" in str(w.message)]
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    facts = {"skipped": module.skipped_steps, "nonfinite": module.loss_watch.steps, "weights": weights}
    return {"error": error, "warned": warned, **facts}
