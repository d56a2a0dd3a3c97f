"""Sums in float64 on a device that has none, faked: there, only `wide` may make a float64 tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_sft import SFTModule
from lightning_sft.metrics import wide as room
from lightning_sft.metrics.sets import SetAverages
from lightning_sft.metrics.wide import WideMetric, wide, wide_device
from tests.fitting import batches, loader, trainer


class NoFloat64(TorchDispatchMode):
    """Refuses float64 results of operations on fp32 tensors, as Apple's GPUs do, but for those that `wide` moves."""

    moving = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        narrow = any(t.dtype == torch.float32 and t.ndim for t in given)
        if narrow and not self.moving and any(t.dtype == torch.float64 for t in made):
            raise TypeError(f"{func}: Cannot convert a MPS Tensor to float64 dtype")
        return result


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> NoFloat64:
    """The CPU in the part of a device without float64."""
    mode, plain = NoFloat64(), room.wide

    def moved(tensor: Tensor) -> Tensor:
        mode.moving += 1
        try:
            return plain(tensor)
        finally:
            mode.moving -= 1

    made = WideMetric.__init__

    def made_on_the_cpu(self: WideMetric, **kwargs: Any) -> None:
        mode.moving += 1  # torchmetrics probes a conversion on the CPU, where every metric is made
        try:
            made(self, **kwargs)
        finally:
            mode.moving -= 1

    monkeypatch.setattr(WideMetric, "__init__", made_on_the_cpu)
    rooms = ("metrics.sets", "metrics.answers", "training.accumulation", "metrics.synonyms", "metrics.silent")
    for user in (*rooms, "metrics.degeneration", "probes.watched_set"):
        monkeypatch.setattr(f"lightning_sft.{user}.wide", moved)
    return mode


def test_the_fake_refuses_what_a_narrow_device_does(narrow: NoFloat64) -> None:
    with narrow, pytest.raises(TypeError, match="Cannot convert"):
        torch.ones(3).double()


def test_a_fit_and_its_validation_make_no_float64_there(toy_folder: Path, narrow: NoFloat64) -> None:
    module = SFTModule(str(toy_folder), lr_scheduler="constant")
    fit = trainer(max_steps=2)
    with narrow:
        fit.fit(module, loader(batches(4, 2)), loader(batches(2, 2)))
    assert module.step_totals["nll"].dtype == torch.float64


def test_where_sums_are_kept() -> None:
    assert wide_device("mps") == torch.device("cpu")
    assert wide_device("cuda:1") == torch.device("cuda", 1)
    assert wide(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float64


def test_a_metric_stays_where_it_is_when_the_module_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "NARROW", frozenset({"meta"}))  # a device that any machine has
    module = nn.Module()
    module.weight, module.averages = nn.Parameter(torch.ones(2)), SetAverages()
    module.to("meta")
    assert module.weight.device.type == "meta"
    assert isinstance(module.averages, WideMetric)
    assert module.averages.token_sums.device.type == "cpu"
    monkeypatch.setattr(room, "NARROW", frozenset())
    module.averages.to("meta")
    assert module.averages.token_sums.device.type == "meta"
