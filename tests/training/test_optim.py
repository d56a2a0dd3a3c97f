import pytest
import torch
from torch import nn

from lightning_sft.errors import UserError
from lightning_sft.training.optim import parameter_groups
from lightning_sft.training.schedules import schedule, warmup_length
from tests.toys import toy_model


def rates(lr_scheduler, total: float = 10, warmup: int = 0) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, lr_scheduler, total, warmup)
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_named_schedules() -> None:
    assert rates("constant") == [1.0] * 10
    assert rates("linear") == pytest.approx([1 - i / 10 for i in range(10)])
    cosine = rates("cosine")
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)


def test_warmup_stands_in_front_of_named_and_own_schedules() -> None:
    assert rates("constant", warmup=4)[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])
    own = rates(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.5), warmup=3)
    assert own[:3] == pytest.approx([0.25, 0.5, 0.75])
    assert own[3:6] == pytest.approx([1.0, 0.5, 0.25])


def test_a_schedule_that_ends_needs_an_end() -> None:
    with pytest.raises(UserError, match=r"'cosine'.*max_steps"):
        rates("cosine", total=float("inf"))
    assert rates("constant", total=float("inf")) == [1.0] * 10


@pytest.mark.parametrize(
    ("total", "steps", "ratio", "expected"),
    [(100, None, 0.1, 10), (100, 7, 0.1, 7), (100, None, 0.0, 0), (float("inf"), 5, 0.0, 5)],
)
def test_warmup_length(total: float, steps: int | None, ratio: float, expected: int) -> None:
    assert warmup_length(total, steps, ratio) == expected


@pytest.mark.parametrize(("total", "steps", "ratio"), [(10, -1, 0.0), (10, None, 1.5), (float("inf"), None, 0.1)])
def test_warmup_refuses_what_cannot_be(total: float, steps: int | None, ratio: float) -> None:
    with pytest.raises(UserError, match="warmup_"):
        warmup_length(total, steps, ratio)


def test_norms_and_biases_have_no_weight_decay_and_frozen_parameters_no_group() -> None:
    model = toy_model("gpt2")
    frozen = model.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
    decay, rest = parameter_groups(model)
    assert rest["weight_decay"] == 0.0
    assert "weight_decay" not in decay
    assert all(p.ndim >= 2 for p in decay["params"])
    assert all(p.ndim < 2 for p in rest["params"])
    everything = [*decay["params"], *rest["params"]]
    assert not any(p is frozen for p in everything)
    assert len(everything) == sum(p.requires_grad for p in model.parameters())


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(UserError, match="requires_grad"):
        parameter_groups(toy_model().requires_grad_(False))
