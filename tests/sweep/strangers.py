"""Modules of others that a prediction has to refuse, or that make it hard."""

import torch
from torch import optim

from tests.callbacks.stranger import Stranger


class Scheduled(Stranger):
    """A warm-up from a rate of 0, then decay."""

    def __init__(self, steps: int = 60, make=None, **given: object) -> None:
        super().__init__(**given)
        self.steps, self.make = steps, make or (lambda p: optim.AdamW(p, lr=3e-3))

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())

        def share(step):
            return min(step / 6, 1.0) * (1 - step / self.steps)

        scheduler = optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class TwoOptimizers(Stranger):
    """Manual optimization with two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        parameters = list(self.parameters())
        return optim.SGD(parameters[:1], lr=1e-3), optim.SGD(parameters[1:], lr=1e-3)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()


class Silent(Stranger):
    """Manual optimization whose step returns no loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Plateau(Stranger):
    """A schedule that a metric drives."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        config = {"scheduler": optim.lr_scheduler.ReduceLROnPlateau(optimizer), "monitor": "train_loss"}
        return {"optimizer": optimizer, "lr_scheduler": {**config, "interval": "epoch"}}


class Away(torch.Tensor):
    """Says that it lies on a device that is not here."""

    device = torch.device("cuda")


class Offloading(Stranger):
    """An optimizer that keeps what it remembers elsewhere, from its first step on."""

    def configure_optimizers(self):
        class Offloaded(optim.SGD):
            def step(self, closure=None):
                loss = super().step(closure)
                for parameter in self.param_groups[0]["params"]:
                    self.state[parameter]["moment"] = torch.zeros(2).as_subclass(Away)
                return loss

        return Offloaded(self.parameters(), lr=1e-3)
