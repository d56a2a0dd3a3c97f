"""Gradients are freed before the next forward pass, unless somebody may read them."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from lightning_sft import SFTModule
from tests.fitting import batches, loader, trainer


class Looks(Callback):
    """Keeps whether there were gradients in the forward pass."""

    def __init__(self) -> None:
        self.held: list[bool] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        embeddings = pl_module.scorer.causal_lm.get_input_embeddings()

        def look(layer: torch.nn.Module, _: Any) -> None:
            if layer.training:  # callbacks that read the rows do so in eval mode
                self.held.append(has_gradient(pl_module))

        self._hook = embeddings.register_forward_pre_hook(look)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        assert has_gradient(pl_module)  # as in every Lightning run

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._hook.remove()


def has_gradient(module: SFTModule) -> bool:
    return any(p.grad is not None for p in module.parameters())


def fit(toy_folder: Path, *callbacks: Callback, kind: type[SFTModule] = SFTModule) -> Looks:
    looks = Looks()
    torch.manual_seed(0)
    module = kind(str(toy_folder), optimizer=lambda p: torch.optim.SGD(p, lr=0.1), lr_scheduler="constant")
    trainer(callbacks=[looks, *callbacks]).fit(module, loader(batches(6, 2)))
    return looks


def test_gradients_are_freed_before_the_forward_pass(toy_folder: Path) -> None:
    assert fit(toy_folder).held == [False, False, False]


def test_gradients_stay_for_hooks_that_read_them(toy_folder: Path) -> None:
    class Reads(Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            """A hook of somebody's."""

    class Keeps(SFTModule):
        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            optimizer.zero_grad(set_to_none=False)

    assert fit(toy_folder, Reads()).held == [False, True, True]
    assert fit(toy_folder, kind=Keeps).held == [False, True, True]
