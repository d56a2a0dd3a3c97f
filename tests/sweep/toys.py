"""Models whose trials have known outcomes, and a callback that runs something between two optimizer steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

ROWS = 64


class Toy(LightningModule):
    """Gradient descent on a function of one vector."""

    def __init__(self, start: list[float], loss: Callable[[Tensor], Tensor], lr: float = 1.0):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.loss = loss
        self.lr = lr

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(self.x)

    def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(self.x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(ROWS, 1), batch_size=1)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(torch.zeros(2, 1), batch_size=1)


def quadratic(*curvatures: float) -> Callable[[Tensor], Tensor]:
    """Half the sum of curvature times square: gradient descent diverges above 2 / the largest."""
    return lambda x: 0.5 * (torch.tensor(curvatures, dtype=x.dtype) * x**2).sum()


class Margin:
    """Reads a function of the toy's vector as the margin of one probe."""

    def __init__(self, margin: Callable[[Tensor], Tensor]) -> None:
        self.margin = margin

    def read(self, trainer: Trainer, module: Toy) -> dict[str, list[float]]:
        return {"margin": [float(self.margin(module.x.detach()))]}


class Between(Callback):
    """Runs something once, before an optimizer step, and keeps what it returns."""

    def __init__(self, work: Callable[[Trainer, LightningModule], Any], at_step: int = 0) -> None:
        self.work = work
        self.at_step = at_step
        self.result: Any = None
        self.done = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at_step and not self.done:
            self.done = True  # a step of several micro-batches begins once
            self.result = self.work(trainer, pl_module)


def fit(module: LightningModule, *callbacks: Callback, folder: Path, **options: Any) -> Trainer:
    """A quiet fit of one step, from the same random streams each time."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"max_steps": 1, "num_sanity_val_steps": 0, "logger": False, **options}
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    settings = {**dict.fromkeys(quiet, False), "accelerator": "cpu", "default_root_dir": folder, **settings}
    trainer = Trainer(**settings, callbacks=list(callbacks))
    trainer.fit(module)
    return trainer


def between(
    module: LightningModule, work: Callable[[Trainer, LightningModule], Any], folder: Path, **options: Any
) -> Any:
    """Return what ``work`` returns before the first step of a fit."""
    callback = Between(work)
    fit(module, callback, folder=folder, **options)
    return callback.result
