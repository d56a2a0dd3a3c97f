"""A step tried without data allocates what the real one does; the same counter watches both."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.profiler import ProfilerActivity, profile

from lightning_sft.estimate.head import head_allocations
from lightning_sft.estimate.live import LiveMemory
from lightning_sft.estimate.spread import on_device
from lightning_sft.estimate.step import StepMemory, StepPlan, try_step
from lightning_sft.head import HeadInput, Unembedding, fused_head
from lightning_sft.head.sizes import Sizes
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.objectives import ASFT, EAFT, NLL, Objective
from tests.models.zoo import tiny_config, tiny_model
from tests.toys import SIZES, save_toy, toy_config

ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def test_what_is_freed_counts_no_longer() -> None:
    known = torch.zeros(1000)
    with LiveMemory([known]) as live:
        one = known * 2
        assert (one.view(10, 100) + 0).numel() == 1000  # a view is nothing new, and the sum is gone
        live.declare_gradient(one)
        known.mul_(2)
    assert (live.rest, live.gradients) == (0, 4000)
    assert max(live.curve.values()) == 8000
    del one
    assert live.gradients == 0


class _GradientsAtOnce(torch.autograd.Function):
    """Has made its gradients when it is called, as the fused head has."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.made = torch.ones_like(hidden), torch.ones_like(weight)
        return hidden.new_zeros(())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        made, ctx.made = ctx.made, None
        return tuple(one.mul_(grad).to(one.dtype) for one in made)


USES_TWICE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "made at once, as the head's": _GradientsAtOnce.apply,  # type: ignore[dict-item]
    "all logits, whose gradient is a view": lambda hidden, weight: torch.nn.functional.linear(hidden, weight).sum(),
    "a gradient of one number": lambda hidden, weight: hidden.sum() + weight.sum(),
    "products": lambda hidden, weight: hidden.sum() + (weight * 3).sum() + (weight * 2).sum(),
}


@pytest.mark.parametrize("use", USES_TWICE.values(), ids=USES_TWICE.keys())
def test_the_two_gradients_of_a_tied_matrix_count_as_autograd_adds_them(use: Any) -> None:
    """Beside the allocator's own record of a backward pass without the counter."""
    weight, ids = torch.nn.Parameter(torch.randn(5000, 64)), torch.arange(8)

    def step() -> None:
        weight.grad = None
        use(torch.nn.functional.embedding(ids, weight), weight).backward()

    step()
    weight.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    assert record.profiler is not None
    now = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    weight.register_post_accumulate_grad_hook(lambda p: live.declare_gradient(p.grad))
    weight.grad = None
    with LiveMemory([weight]) as live:
        step()
    assert max(rest + gradients for gradients, rest in live.curve.items()) == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("objective", [NLL(), EAFT()], ids=lambda o: o.reads)
def test_the_head_allocates_what_the_fused_head_does(dtype: torch.dtype, frozen: bool, objective: Objective) -> None:
    tokens, dim, vocab = 512, 64, 6000
    sizes = Sizes(chunk=128, tile=1024, rows=vocab * 4 * 16)
    hidden = torch.randn(tokens, dim).to(dtype).requires_grad_()
    weight = torch.randn(vocab, dim).to(dtype).requires_grad_(not frozen)
    targets = torch.randint(vocab, (tokens,))

    def peak(loss: Any) -> int:
        hidden.grad = weight.grad = None
        with LiveMemory([hidden, weight, targets]) as live:
            loss().backward()
        return max(rest + gradients for gradients, rest in live.curve.items())

    inputs = HeadInput(hidden, targets, largest_target=vocab - 1)
    real = peak(lambda: fused_head(inputs, Unembedding(weight), objective, sizes).loss_sum)
    ours = peak(lambda: head_allocations(hidden, weight, dtype, objective.reads, sizes))
    assert ours == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("llama", {"gradient_checkpointing": True}),
        ("gemma2", {"adapter": LoraConfig(r=4, target_modules="all-linear"), "dtype": "bfloat16"}),
        ("gpt_neox", {"dtype": "bfloat16"}),
        ("opt", {"adapter": LoraConfig(r=4, target_modules="all-linear"), "gradient_checkpointing": True}),
    ],
    ids=["full", "checkpointing", "LoRA, bfloat16", "full, bfloat16", "LoRA, checkpointing"],
)
def test_a_step_without_data_holds_what_a_real_one_does(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder, rows, length = save_toy(tmp_path / "toy", kind, vocab_size=2000), 4, 128
    given = ModelSettings(str(folder), init="random", **settings)
    scorer = build_scorer(given, NLL(), 259)
    ids = torch.randint(200, (rows, length))
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    parameters = [*scorer.parameters(), *scorer.buffers()]
    with LiveMemory(parameters) as live:
        for parameter in scorer.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: live.declare_gradient(p.grad))
        scorer(batch, NLL()).loss_sum.backward()
    real = max(rest + gradients for gradients, rest in live.curve.items())
    plan = StepPlan(given, rows, length, optimizer=ADAMW)
    ours = try_step(plan, toy_config(kind, vocab_size=2000))
    assert ours.weights == sum(t.numel() * t.element_size() for t in parameters)
    assert ours.moving() == pytest.approx(real, rel=0.12)
    trained = [p for p in scorer.parameters() if p.requires_grad]
    optimizer = ADAMW(trained)
    optimizer.step()
    held = sum(v.numel() * v.element_size() for s in optimizer.state.values() for v in s.values())
    assert ours.states == held


def test_gradients_of_earlier_micro_batches_are_there_throughout() -> None:
    config, settings = toy_config(), ModelSettings("x")
    once, again = (try_step(StepPlan(settings, 2, 64, ADAMW, accumulates=two), config) for two in (False, True))
    assert again.moving() >= once.moving()
    assert again.moving() == max(again.curve)[1] + again.trained


def test_sharded_gradients_are_whole_until_they_are_sent() -> None:
    curve = ((0, 500), (200, 300), (1000, 50))  # the head's, two layers later, at the end
    step = StepMemory((250, 250), 1000, 1000, 2000, True, (100, 100), (400, 400), 300, 200, curve)
    assert step.moving(0.5) == 550
    assert step.moving_whole(0.5) == 400 + 200 + (1000 - 600) // 2 + 50, "what is outside, two layers, shares of others"
    held = on_device(step, "fsdp2", 2, 0, gpu=False)
    assert (held.gathered, held.kept) == (600, 500 + 1000 + 600)
    assert held.peak == held.kept + 850


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [(torch.optim.SGD, 0), (partial(torch.optim.SGD, momentum=0.9), 1), (torch.optim.AdamW, 2)],
)
def test_states_are_those_of_the_optimizer(optimizer: Any, numbers: int) -> None:
    made = try_step(StepPlan(ModelSettings("x"), 1, 8, partial(optimizer, lr=0.1)), toy_config())
    assert made.states_known
    assert made.states // 4 == pytest.approx(numbers * made.parameters[1], abs=100)


def test_adafactor_keeps_rows_and_columns() -> None:
    made = try_step(StepPlan(ModelSettings("x"), 1, 8, partial(torch.optim.Adafactor, lr=0.1)), toy_config())
    assert made.states_known
    assert 0 < made.states < made.trained / 2


def test_layers_are_split_by_their_heads_and_widths() -> None:
    config = toy_config()
    whole, half = (try_step(StepPlan(ModelSettings("x"), 2, 64, ADAMW, splits=n), config) for n in (1, 2))
    assert half.root == whole.root
    matrices = SIZES["hidden_size"] * 2 * 4  # the norms stay whole
    assert half.layer[0] - matrices == (whole.layer[0] - matrices) / 2
    assert config.num_attention_heads == SIZES["num_attention_heads"]


def test_a_reference_is_read_beside() -> None:
    assert ASFT().reads in ("row", "logp", "batch")
    plain, beside = (try_step(StepPlan(ModelSettings("x"), 4, 128, ADAMW, compares=n), toy_config()) for n in (0, 1))
    assert beside.head > plain.head


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_experts_are_multiplied_without_data_in_any_dtype(dtype: Any) -> None:
    autocast = torch.bfloat16 if dtype == "float32" else None
    plan = StepPlan(ModelSettings("toy", dtype=dtype), rows=2, length=16, optimizer=ADAMW, autocast=autocast)
    found = try_step(plan, tiny_config("qwen3_moe"))
    count = sum(p.numel() for p in tiny_model("qwen3_moe").parameters())
    assert found.parameters == (count, count)
    assert max(gradients for gradients, _ in found.curve) == count * getattr(torch, dtype).itemsize


def test_what_text_does_not_reach_has_no_gradient_nor_state() -> None:
    plan = StepPlan(ModelSettings("toy"), rows=2, length=16, optimizer=ADAMW)
    found = try_step(plan, tiny_config("gemma3"))
    text = sum(p.numel() for n, p in tiny_model("gemma3").named_parameters() if "language_model" in n)
    assert found.parameters[0] > found.parameters[1] == text
    assert found.trained == 4 * text
