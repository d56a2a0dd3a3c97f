"""A term that a subclass adds to the loss: averaged over micro-batches and ranks, whatever the tokens of the step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from tests.distributed.ranks import two_ranks
from tests.fitting import batches, loader, trainer


class Extra(SFTModule):
    """Adds a multiple of the sum of all parameters, which differs from micro-batch to micro-batch."""

    weight = 0.0
    naive = False
    through_the_model = False

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        returned = super().training_step(batch, batch_idx)
        weight = self.weight * (1 + batch_idx)
        if self.through_the_model:
            hidden = self.scorer.causal_lm.model(batch["input_ids"]).last_hidden_state
            term = weight * (hidden**2).mean()
        else:
            term = weight * sum(p.sum() for p in self.parameters())
        if self.naive:
            return {**returned, "loss": returned["loss"] + term}
        return {**returned, "extra_loss": term}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen = torch.cat([p.grad.flatten() for p in self.parameters()]).clone()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Further(Extra):
    """A subclass of a subclass, which looks at what comes back."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        returned = super().training_step(batch, batch_idx)
        assert "extra_loss" in returned
        return returned


def gradient(model: Path, kind: type[Extra] = Extra, accumulate: int = 1, given: Any = None, **settings: Any) -> Tensor:
    torch.manual_seed(0)
    module = kind(str(model), dtype="float64")
    for name, value in settings.items():
        setattr(module, name, value)
    fit = trainer(max_steps=1, accumulate_grad_batches=accumulate, **(given or {}))
    fit.fit(module, loader(batches(6, 2)))
    return module.seen


@pytest.mark.parametrize("kind", [Extra, Further])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_term_is_averaged_over_micro_batches(accumulate: int, kind: type[Extra], toy_folder: Path) -> None:
    plain, extra = (gradient(toy_folder, kind, accumulate, weight=weight) for weight in (0.0, 1.0))
    expected = sum(range(1, accumulate + 1)) / accumulate
    assert torch.allclose(extra - plain, torch.full_like(plain, expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_term_that_goes_through_the_model_is_exact(accumulate: int, toy_folder: Path) -> None:
    module = SFTModule(str(toy_folder), dtype="float64")
    module.configure_model()
    rows = batches(6, 2)[:accumulate]
    terms = [
        (1 + i) * (module.scorer.causal_lm.model(b["input_ids"]).last_hidden_state ** 2).mean()
        for i, b in enumerate(rows)
    ]
    (sum(terms) / len(terms)).backward()
    zero = torch.zeros(())
    expected = torch.cat([(zero.expand_as(p) if p.grad is None else p.grad).flatten() for p in module.parameters()])
    given = {"accumulate": accumulate, "through_the_model": True}
    plain, extra = (gradient(toy_folder, weight=weight, **given) for weight in (0.0, 1.0))
    assert torch.allclose(extra - plain, expected, rtol=1e-5, atol=1e-6), "the model's norms compute in fp32"


def test_what_is_shown_is_the_sum_of_both(toy_folder: Path) -> None:
    shown: list[float] = []

    class Shown(Extra):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            shown.append(float(outputs["loss"]))

    for weight in (0.0, 1.0):
        gradient(toy_folder, Shown, 3, weight=weight)
    torch.manual_seed(0)
    module = SFTModule(str(toy_folder), dtype="float64")
    module.configure_model()
    total = sum(float(p.detach().sum()) for p in module.parameters())
    assert [b - a for a, b in zip(shown[:3], shown[3:], strict=True)] == pytest.approx([total, 2 * total, 3 * total])


def test_a_changed_loss_and_a_term_that_is_no_scalar_are_errors(toy_folder: Path) -> None:
    with pytest.raises(UserError, match=r"return the term as out\['extra_loss'\]"):
        gradient(toy_folder, weight=1.0, naive=True)

    class Vector(Extra):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {**SFTModule.training_step(self, batch, batch_idx), "extra_loss": torch.zeros(2)}

    with pytest.raises(UserError, match=r"a tensor of shape \(2,\)"):
        gradient(toy_folder, Vector)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_on_two_ranks(accumulate: int, toy_folder: Path, tmp_path: Path) -> None:
    found = two_ranks("extra:gradients", tmp_path, model=str(toy_folder), accumulate=accumulate)
    for rank in found:
        # rank r adds (1 + r) times (1, 2, ...) times the sum of the parameters
        expected = 1.5 * sum(range(1, accumulate + 1)) / accumulate
        assert torch.allclose(rank["extra"] - rank["plain"], torch.full_like(rank["plain"], expected), atol=1e-9)
