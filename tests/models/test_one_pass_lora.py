"""LoRA added in one pass, against peft's own way and against float64."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners import lora
from torch import Tensor, nn

from lightning_sft.models.one_pass_lora import OnePassLinear, add_in_one_pass
from tests.toys import toy_model

ROWS, WIDTH = (2, 5), 32


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def layers(dtype: torch.dtype, bias: bool = False, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """A layer as peft makes it, and the same one in one pass; neither part of the adapter is zero."""
    model = nn.ModuleDict({"lin": nn.Linear(WIDTH, 48, bias=bias)}).to(dtype)
    theirs = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=["lin"], **settings))
    nn.init.normal_(theirs.get_submodule("base_model.model.lin").lora_B["default"].weight)
    ours = copy.deepcopy(theirs)
    add_in_one_pass(ours)
    pair = [one.get_submodule("base_model.model.lin") for one in (theirs, ours)]
    return pair[0], pair[1]


def results(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients in float64, by name; the same dropout at each call."""
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    layer.zero_grad()
    out = layer(x)
    out.double().square().sum().backward()
    grads = {name: p.grad for name, p in layer.named_parameters() if p.requires_grad}
    return {name: t.detach().double() for name, t in {"output": out, "input": x.grad, **grads}.items()}


def no_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let peft's own way be an error."""

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("peft's own way")

    monkeypatch.setattr(lora.Linear, "forward", refuse)


@pytest.mark.parametrize("settings", [{}, {"bias": True}, {"lora_dropout": 0.5}, {"use_rslora": True}])
def test_it_is_peft_in_float64(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    theirs, ours = layers(torch.float64, **settings)
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64)
    expected = results(theirs, x)
    no_peft(monkeypatch)
    got = results(ours, x)
    assert got.keys() == expected.keys()
    assert len(got) == 4
    for name, right in expected.items():
        torch.testing.assert_close(got[name], right, rtol=0, atol=1e-12 * float(right.abs().max()))
        assert got[name].shape == right.shape


@pytest.mark.parametrize("shape", [(WIDTH,), (0, WIDTH), (2, 0, WIDTH)])  # an expert may get no token
def test_any_number_of_rows(shape: tuple[int, ...]):
    theirs, ours = layers(torch.float64)
    x = torch.randn(*shape, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_is_as_close_to_float64_as_peft(autocast: bool, monkeypatch: pytest.MonkeyPatch):
    """A base in bf16 under an adapter in fp32, or all in fp32 under autocast."""
    theirs, ours = layers(torch.float32 if autocast else torch.bfloat16)
    assert ours.lora_A["default"].weight.dtype == torch.float32
    x = torch.randn(64, WIDTH).to(theirs.base_layer.weight.dtype)
    exact = results(copy.deepcopy(theirs).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        peft = results(theirs, x)
        no_peft(monkeypatch)
        mine = results(ours, x)
    for name, right in exact.items():
        assert (mine[name] - right).norm() <= 1.05 * (peft[name] - right).norm(), name


def hooked(layer: nn.Module) -> None:
    layer.lora_B["default"].register_forward_hook(lambda *_: None)


def base_hooked(layer: nn.Module) -> None:
    layer.base_layer.register_forward_pre_hook(lambda *_: None)


def two_adapters(layer: nn.Module) -> None:
    layer.update_layer("more", 2, lora_alpha=2, config=LoraConfig(r=2))
    layer.set_adapter(["default", "more"])


@pytest.mark.parametrize(
    "change",
    [hooked, base_hooked, two_adapters, lambda layer: layer.enable_adapters(False), lambda layer: layer.merge()],
    ids=["hook on B", "hook on the base", "two adapters", "switched off", "merged"],
)
def test_other_cases_are_left_to_peft(change: Callable[[nn.Module], None], monkeypatch: pytest.MonkeyPatch):
    theirs, ours = layers(torch.float64)
    for layer in (theirs, ours):
        torch.manual_seed(2)
        change(layer)
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))
    no_peft(monkeypatch)
    with pytest.raises(AssertionError, match="peft's own way"):
        ours(x)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_are_left_to_peft(settings: dict[str, Any]):
    theirs, ours = layers(torch.float64, bias=True, **settings)
    x = torch.randn(*ROWS, WIDTH, dtype=torch.float64)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # whose layers are Linear and Conv1D
def test_a_whole_model_trains_as_with_peft(kind: str, monkeypatch: pytest.MonkeyPatch):
    theirs = get_peft_model(
        toy_model(kind, dtype=torch.float64),
        LoraConfig(r=4, target_modules="all-linear", fan_in_fan_out=kind == "gpt2", task_type="CAUSAL_LM"),
    )
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    ours = copy.deepcopy(theirs)
    add_in_one_pass(ours)
    assert any(isinstance(m, OnePassLinear) for m in ours.modules())
    ids = torch.randint(0, 200, (2, 9))
    expected = trained(theirs, ids)
    no_peft(monkeypatch)
    got = trained(copy.deepcopy(ours), ids)  # a copy works on its own weights
    assert got.keys() == expected.keys()
    for name, right in expected.items():
        torch.testing.assert_close(got[name], right, rtol=1e-6, atol=1e-9)  # norms compute in fp32
    assert all(p.grad is None for p in ours.parameters())


def trained(model: PeftModel, ids: Tensor) -> dict[str, Tensor]:
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
