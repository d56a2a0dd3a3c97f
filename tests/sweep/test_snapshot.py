"""What a snapshot holds, what it costs, and that it puts back what a trial broke."""

import random
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import LoraConfig
from torch import nn

from lightning_sft import SFTModule
from lightning_sft.callbacks import LearningRateSweep
from lightning_sft.sweep.snapshot import Snapshot
from tests.distributed.work import sgd_module
from tests.fitting import batches, loader, trainer
from tests.sweep.toys import Between, Toy, between, fit, quadratic
from tests.training.scaling import SCALE, FullPrecision, scaled


class Wild(Toy):
    """A module that keeps state in every place where modules keep it."""

    def __init__(self) -> None:
        super().__init__([3.0], quadratic(1.0))
        self.inner = nn.BatchNorm1d(2)
        self.count = 0
        self.seen: list[int] = [1]
        self.table = {"a": [1.0]}
        self.recent = deque([1, 2], maxlen=2)
        self.names = {"x"}
        self.mean = torch.zeros(2)
        self.stream = torch.Generator().manual_seed(1)
        self.numbers = np.random.default_rng(1)
        self.dice = random.Random(1)
        self.register_buffer("history", torch.zeros(3))

    def mess_up(self) -> None:
        self.inner(torch.randn(4, 2))
        self.count += 1
        self.seen.append(2)
        self.table["a"].append(2.0)
        self.table["b"] = []
        self.recent.append(3)
        self.names.add("y")
        self.mean += 1
        self.history = torch.ones(3)
        self.later = 5
        with torch.no_grad():
            self.x.fill_(7.0)
        self.stream.initial_seed()
        torch.rand(1, generator=self.stream)
        self.numbers.random()
        self.dice.random()
        random.random()
        np.random.random()
        self.eval()

    def facts(self) -> list[Any]:
        streams = (torch.get_rng_state().tolist(), self.stream.get_state().tolist(), self.dice.getstate())
        others = (random.getstate(), np.random.get_state()[1].tolist(), self.numbers.bit_generator.state)
        tensors = {k: v.tolist() for k, v in self.state_dict().items()}
        plain = (self.count, list(self.seen), str(self.table), list(self.recent), sorted(self.names))
        return [*streams, *others, tensors, plain, self.mean.tolist(), self.training, hasattr(self, "later")]


def test_every_kind_of_state_comes_back_in_place(tmp_path: Path) -> None:
    def work(trainer: Trainer, module: LightningModule) -> Any:
        assert isinstance(module, Wild)
        objects = [module.x, module.seen, module.table["a"], module.mean, module.history, module.stream]
        before, snapshot = module.facts(), Snapshot(trainer, module)
        for _ in range(2):
            module.mess_up()
            broken = module.facts()
            snapshot.restore()
            assert [a == b for a, b in zip(broken, before, strict=True)] == [False] * len(before)
            assert module.facts() == before
        now = [module.x, module.seen, module.table["a"], module.mean, module.history, module.stream]
        return [a is b for a, b in zip(objects, now, strict=True)]

    assert between(Wild(), work, tmp_path) == [True] * 6


class Kept(Callback):
    """A callback that takes part in trials and remembers what it saw."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.steps.append(trainer.global_step)
        for parameter in pl_module.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(0.5)


class Deaf(Kept):
    """A callback that does not."""


def test_a_kept_callback_acts_in_trials_and_forgets_them(tmp_path: Path) -> None:
    kept, deaf = Kept(), Deaf()
    sweep = LearningRateSweep(low=0.1, high=0.5, steps=5, keep_callbacks=["Kept"], at_step=1)
    fit(Toy([3.0], quadratic(1.0)), sweep, kept, deaf, folder=tmp_path, max_steps=2)
    assert sweep.result is not None
    rows, x = sweep.result.rows(), 2.25  # after a step of the fit, in which both have acted
    for row in rows:
        x *= 1 - row["lr"] / 2  # half the gradient
        assert row["loss"] == pytest.approx(0.5 * x**2)
    assert len(rows) == 4
    assert kept.steps == deaf.steps == [0, 1]


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_the_loss_scaler_comes_back(toy_folder: Path) -> None:
    def ended(*callbacks: Callback) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        module = sgd_module(str(toy_folder))
        settings = scaled(FullPrecision)
        run = trainer(callbacks=list(callbacks), accumulate_grad_batches=2, gradient_clip_val=0.5, **settings)
        run.fit(module, loader(batches(8, 2)))
        return run.precision_plugin.scaler.state_dict(), module.state_dict()

    # the rates overflow the scaled gradients, which halves the scale in the trials
    sweeps = [LearningRateSweep(low=1.0, high=1e30, steps=6, at_step=step, name=f"at{step}") for step in (0, 1)]
    (scale, swept), (expected, plain) = ended(*sweeps), ended()
    assert scale == expected
    assert scale["scale"] == SCALE
    assert all(torch.equal(swept[k], v) for k, v in plain.items())
    assert all(sweep.result is not None for sweep in sweeps)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
def test_memory_is_that_of_what_is_trained(adapter: bool, toy_folder: Path) -> None:
    given = {"adapter": LoraConfig(r=2, target_modules="all-linear")} if adapter else {}
    module = SFTModule(str(toy_folder), lr_scheduler="constant", **given)
    sizes: list[tuple[int, int]] = []

    def work(trainer: Trainer, module: LightningModule) -> None:
        trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
        buffers = sum(b.numel() * b.element_size() for b in module.buffers())
        sizes.append((Snapshot(trainer, module).bytes - buffers, trained))

    run = trainer(callbacks=[Between(work), Between(work, at_step=1)])
    run.fit(module, loader(batches(4, 2)))
    whole = sum(p.numel() * p.element_size() for p in module.parameters())
    small = 4096  # counters, sums of a step, learning rates
    (start, trained), (later, _) = sizes
    assert trained <= start <= trained + small
    assert 3 * trained <= later <= 3 * trained + small, "AdamW keeps two numbers a parameter"
    assert (trained < whole / 4) == adapter
