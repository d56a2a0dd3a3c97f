"""StepAccumulator without a Trainer: one gradient for every split of a step, in loops of plain torch."""

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_sft.errors import UserError
from lightning_sft.training import StepAccumulator

ROWS = 8
SPLITS = (8, 4, 2, 1)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class TwoRanks:
    """Stands for two ranks in one process: what this one has is doubled, as if the other had the same rows."""

    data_parallel_size = 2

    def sum_over_rows(self, sums: Tensor) -> Tensor:
        return 2 * sums


def model_and_rows(
    dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A small network, and rows of very different numbers of tokens: inputs (tokens, 4), targets (tokens,)."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).to(dtype)
    rows = []
    for i in range(ROWS):
        tokens = 1 + i * i % 11
        inputs = torch.randn(tokens, 4, generator=generator, dtype=dtype)
        rows.append((inputs.to(device), torch.randint(5, (tokens,), generator=generator).to(device)))
    return net.to(device), rows


def losses_of(net: nn.Module, rows: list[tuple[Tensor, Tensor]]) -> Tensor:
    inputs, targets = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return nn.functional.cross_entropy(net(inputs), targets, reduction="none")


def gradient(net: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SPLITS)
def test_every_split_gives_the_gradient_of_the_whole_step(size: int, dtype: torch.dtype, device: torch.device) -> None:
    net, rows = model_and_rows(dtype, device)
    losses = losses_of(net, rows)
    losses.mean().backward()
    expected = gradient(net)
    net.zero_grad()

    steps, seen = StepAccumulator(), []
    for first in range(0, ROWS, size):
        part = losses_of(net, rows[first : first + size])
        loss = steps.add(part.sum(), tokens=len(part))
        assert loss.item() == pytest.approx(part.mean().item(), rel=1e-6), "shown is the mean of the micro-batch"
        loss.backward()
        seen.append(steps.open_micro_batches)
    assert seen == list(range(1, ROWS // size + 1))
    assert steps.finish(net.parameters())

    assert (gradient(net) - expected).norm() <= TOLERANCE[dtype] * expected.norm()
    assert steps.open_micro_batches == 0
    assert float(steps.totals["supervised"]) == len(losses)
    assert steps.totals.mean("loss") == pytest.approx(losses.mean().item(), rel=1e-6)


def test_what_a_framework_divides_by_is_taken_back() -> None:
    net, rows = model_and_rows()
    losses_of(net, rows).mean().backward()
    expected = gradient(net)
    net.zero_grad()
    steps = StepAccumulator()
    for first in range(0, ROWS, 2):
        part = losses_of(net, rows[first : first + 2])
        (steps.add(part.sum(), len(part), divided_by=4) / 4).backward()
    steps.finish(net.parameters())
    assert (gradient(net) - expected).norm() <= 1e-10 * expected.norm()


def test_gradients_that_are_averages_over_ranks_are_made_whole() -> None:
    net, rows = model_and_rows()
    losses = losses_of(net, rows)
    losses.mean().backward()
    expected = gradient(net)
    net.zero_grad()
    steps = StepAccumulator()
    part = losses_of(net, rows)
    steps.add(part.sum(), len(part)).backward()  # the average over two ranks with the same rows is this gradient
    steps.finish(net.parameters(), TwoRanks())
    assert (gradient(net) - expected).norm() <= 1e-10 * expected.norm()
    assert float(steps.totals["supervised"]) == 2 * len(losses)


def test_weights_of_tokens_are_a_denominator_too() -> None:
    net, rows = model_and_rows()
    weights = torch.linspace(0.01, 0.1, len(losses_of(net, rows)), dtype=torch.float64)
    losses = losses_of(net, rows)
    ((losses * weights).sum() / weights.sum()).backward()
    expected = gradient(net)
    net.zero_grad()
    steps, begin = StepAccumulator(), 0
    for row in rows:
        part = losses_of(net, [row])
        weight = weights[begin : begin + len(part)]
        begin += len(part)
        loss = steps.add((part * weight).sum(), tokens=weight.sum())
        assert loss.item() == pytest.approx(((part * weight).sum() / weight.sum()).item())
        loss.backward()
    steps.finish(net.parameters())
    assert (gradient(net) - expected).norm() <= 1e-10 * expected.norm()


def test_a_step_without_tokens_learns_nothing_and_is_counted() -> None:
    net, rows = model_and_rows()
    steps = StepAccumulator()
    assert not steps.learned
    nothing = losses_of(net, rows)[:0]
    loss = steps.add(nothing.sum(), tokens=0)
    assert loss.item() == 0
    loss.backward()
    net[0].weight.grad.fill_(math.nan)  # whatever the gradient of nothing is
    assert not steps.finish(net.parameters())
    assert not gradient(net).any()
    assert (steps.skipped_steps, steps.learned) == (1, False)
    part = losses_of(net, rows)
    steps.add(part.sum(), len(part)).backward()
    assert steps.finish(net.parameters())
    assert (steps.skipped_steps, steps.learned) == (1, True)


def test_an_interrupted_step_is_forgotten() -> None:
    net, rows = model_and_rows()
    steps = StepAccumulator()
    steps.add(losses_of(net, rows).sum(), 1000)
    steps.reset()
    assert steps.open_micro_batches == 0
    part = losses_of(net, rows)
    steps.add(part.sum(), len(part)).backward()
    steps.finish(net.parameters())
    assert float(steps.totals["supervised"]) == len(part)


def test_frozen_parameters_are_passed_over() -> None:
    net, rows = model_and_rows()
    net[0].weight.grad = torch.ones_like(net[0].weight)  # left from before it was frozen
    net[0].weight.requires_grad_(False)
    steps = StepAccumulator()
    part = losses_of(net, rows)
    steps.add(part.sum(), len(part)).backward()
    steps.finish(net.parameters())
    assert (net[0].weight.grad == 1).all()


def test_kept_tokens_are_the_denominator_where_asked() -> None:
    steps = StepAccumulator("kept")
    steps.add_sums({"supervised": torch.tensor(10.0), "kept": torch.tensor(4.0)})
    assert steps.close() == 1024 / 4
    steps.add_sums({"supervised": torch.tensor(10.0), "kept": torch.tensor(0.0)})
    assert steps.close() == 0
    assert steps.skipped_steps == 1


def test_mistakes_are_told() -> None:
    net, rows = model_and_rows()
    steps = StepAccumulator()
    with pytest.raises(UserError, match=r"losses of shape \(\d+,\).*losses\.sum\(\)"):
        steps.add(losses_of(net, rows), 8)
    with pytest.raises(UserError, match=r"without a micro-batch. Call StepAccumulator\.add"):
        steps.finish(net.parameters())
    steps.add(losses_of(net, rows).sum(), 8)
    steps.close()
    with pytest.raises(KeyError, match="'nll' is not among the sums of an optimizer step"):
        steps.totals.mean("nll")
