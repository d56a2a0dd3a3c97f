"""One norm of the gradients, shared by log and clipping; clipping as torch has it; Adam in its fused form."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_sft import SFTModule
from lightning_sft.callbacks import TrainingMetrics
from lightning_sft.training import gradients, optim
from lightning_sft.training.gradients import SharedNorm, clip_to_norm, gradient_norm
from tests.fitting import batches, loader, trainer


def parameters(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[nn.Parameter]:
    stream = torch.Generator().manual_seed(0)
    made = []
    for shape in ((40, 30), (30,), (7, 5, 3)):
        parameter = nn.Parameter(torch.zeros(shape, dtype=dtype))
        parameter.grad = scale * torch.randn(shape, generator=stream).to(dtype)
        made.append(parameter)
    return made


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)]
)
def test_norm_is_summed_in_fp32(dtype: torch.dtype, tolerance: float) -> None:
    given = [p.grad for p in parameters(dtype)]
    right = torch.cat([g.flatten().double() for g in given]).norm()
    assert float(gradient_norm(given)) == pytest.approx(float(right), rel=tolerance)
    mixed = [*given, torch.full((3,), 2.0, dtype=torch.float64)]
    assert float(gradient_norm(mixed)) == pytest.approx(float((right**2 + 12).sqrt()), rel=tolerance)


@pytest.mark.parametrize("largest", [0.5, 1.0, 1e4])
@pytest.mark.parametrize("worst", [1.0, float("nan"), float("inf")])
def test_clipping_is_torchs(largest: float, worst: float) -> None:
    ours, theirs = parameters(), parameters()
    for given in (ours, theirs):
        given[0].grad[0, 0] *= worst
    clip_to_norm([p.grad for p in ours], gradient_norm(p.grad for p in ours), largest)
    nn.utils.clip_grad_norm_(theirs, largest)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.grad, b.grad) or (a.grad.isnan() == b.grad.isnan()).all()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=0, equal_nan=True)


def test_small_gradients_are_not_written() -> None:
    given = parameters()
    before = [p.grad._version for p in given]
    assert SharedNorm(torch.optim.SGD(given), gradient_norm).clip(1e4)
    assert [p.grad._version for p in given] == before


def test_a_kept_norm_serves_once_and_only_for_the_same_gradients() -> None:
    given, calls = parameters(), []

    def measure(tensors: Any) -> torch.Tensor:
        calls.append(1)
        return gradient_norm(tensors)

    shared = SharedNorm(torch.optim.SGD(given), measure)
    shared.look(keep=True)
    shared.clip(1.0)
    assert len(calls) == 1
    shared.clip(1.0)
    assert len(calls) == 2
    shared.look(keep=True)
    given[0].grad.mul_(100)
    shared.clip(1.0)
    assert len(calls) == 4
    assert float(gradient_norm(p.grad for p in given)) == pytest.approx(1.0, rel=1e-4)
    shared.look()
    shared.clip(1.0)
    assert len(calls) == 6


class Loud(Callback):
    """Multiplies the gradients behind autograd's back."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.data.mul_(1000.0)


class Norms(Callback):
    """Writes down the norm that the optimizer sees."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        given = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.seen += [float(gradient_norm(given))] if given else []


@pytest.mark.parametrize("loud", [False, True])
def test_log_and_clipping_share_one_norm_in_a_fit(
    loud: bool, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(tensors: Any) -> torch.Tensor:
        calls.append(1)
        return gradient_norm(tensors)

    monkeypatch.setattr("lightning_sft.training.strategies.gradient_norm", counting)
    norms = Norms()
    callbacks = [TrainingMetrics(), *([Loud()] if loud else []), norms]
    trainer(callbacks=callbacks, gradient_clip_val=0.01).fit(SFTModule(str(toy_folder)), loader(batches()))
    assert len(calls) == (6 if loud else 3)
    assert norms.seen
    assert max(norms.seen) == pytest.approx(0.01, rel=1e-3)


def test_adam_is_fused_unless_told_otherwise() -> None:
    def made(kind: type[torch.optim.Optimizer], **options: Any) -> torch.optim.Optimizer:
        return optim.checked_optimizer(lambda groups: kind(groups, lr=0.1, **options), [{"params": parameters()}])

    for kind in (torch.optim.Adam, torch.optim.AdamW):
        plain = optim.describe_optimizer(kind(parameters(), lr=0.1))
        assert made(kind).param_groups[0]["fused"] is True
        assert optim.describe_optimizer(made(kind)) == plain  # what a resume compares
        for options in ({"foreach": True}, {"fused": False}, {"capturable": True}):
            assert not made(kind, **options).param_groups[0]["fused"]
    assert not made(torch.optim.SGD).param_groups[0]["fused"]
    fused, loop = made(torch.optim.AdamW), made(torch.optim.AdamW, fused=False, foreach=False)
    for _ in range(3):
        for optimizer in (fused, loop):
            optimizer.step()
    pairs = zip(fused.param_groups[0]["params"], loop.param_groups[0]["params"], strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


class WidestFloat(TorchDispatchMode):
    """Notes the entries of the largest fp32 tensor that any operator returns."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
            self.entries = max(self.entries, out.numel())
        return out


def test_16_bit_gradients_are_widened_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "_PIECE", 128)
    given = [p.grad for p in parameters(torch.bfloat16)]
    given += [given[0][:, ::2], torch.zeros(0, dtype=torch.bfloat16)]
    right = torch.cat([g.flatten().double() for g in given]).norm()
    with WidestFloat() as seen:
        norm = gradient_norm(given)
    assert float(norm) == pytest.approx(float(right), rel=1e-6)
    assert seen.entries == 128
