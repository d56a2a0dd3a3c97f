"""A loss scaler changes no gradient: 16-bit mixed precision on its own path, with the scale made visible."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from tests.distributed.work import Gradients, sgd_module
from tests.fitting import batches, loader, trainer
from tests.training.scaling import FullPrecision, scaled


def fit(model: Path, masked: tuple[int, ...] = (), size: int = 2, accumulate: int = 2, **settings: object):
    rows = batches(8, size)
    for index in masked:
        rows[index]["labels"].fill_(-100)
    seen = Gradients()
    module = sgd_module(str(model))
    run = trainer(callbacks=[seen], accumulate_grad_batches=accumulate, gradient_clip_val=0.5, **settings)
    run.fit(module, loader(rows))
    return module, seen.steps


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("masked", [(), (0, 1), (2,)], ids=["all", "a step without supervision", "a masked half"])
def test_scaled_gradients_and_weights_are_those_without_a_scaler(masked: tuple[int, ...], toy_folder: Path) -> None:
    plain, expected = fit(toy_folder, masked)
    module, steps = fit(toy_folder, masked, **scaled(FullPrecision))
    assert module.skipped_steps == plain.skipped_steps == (masked == (0, 1))
    assert len(steps) == len(expected) > 0
    for got, wanted in zip(steps, expected, strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5 * float(value.norm()))
    for name, value in plain.scorer.state_dict().items():
        torch.testing.assert_close(module.scorer.state_dict()[name], value, rtol=0, atol=1e-6)


def test_every_split_of_a_scaled_step_gives_one_gradient(toy_folder: Path) -> None:
    _, (expected,) = fit(toy_folder, size=8, accumulate=1)
    for size in (8, 4, 2, 1):
        _, (got,) = fit(toy_folder, size=size, accumulate=8 // size, **scaled(FullPrecision))
        for name, value in expected.items():
            assert (got[name] - value).norm() <= 1e-5 * value.norm(), f"{size} rows: {name}"


def test_half_precision_agrees_to_its_own_rounding(toy_folder: Path) -> None:
    _, expected = fit(toy_folder)
    _, steps = fit(toy_folder, **scaled(MixedPrecision))
    for name, value in expected[0].items():
        assert (steps[0][name] - value).norm() <= 0.02 * value.norm(), name


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_an_overflow_skips_the_update_and_halves_the_scale(toy_folder: Path) -> None:
    plugin = scaled(MixedPrecision, scale=2.0**60)
    module, steps = fit(toy_folder, **plugin)
    assert not all(bool(v.isfinite().all()) for step in steps for v in step.values())
    assert plugin["plugins"].scaler.get_scale() < 2.0**60
    for parameter, start in zip(module.scorer.parameters(), fresh(toy_folder), strict=True):
        assert torch.equal(parameter, start)


def fresh(model: Path) -> list[torch.Tensor]:
    module = sgd_module(str(model))
    module.configure_model()
    return list(module.scorer.parameters())


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_fused_optimizers_are_clipped_in_bf16_where_nothing_is_scaled(toy_folder: Path) -> None:
    weights = []
    for fused in (False, True):
        module = sgd_module(str(toy_folder))
        module.make_optimizer = lambda groups, fused=fused: torch.optim.SGD(groups, lr=1.0, fused=fused)
        run = trainer(precision="bf16-mixed", gradient_clip_val=1e-2)
        run.fit(module, loader(batches(2, 2)))
        weights.append(torch.cat([p.detach().flatten() for p in module.scorer.parameters()]))
    start = sgd_module(str(toy_folder))
    start.configure_model()
    moved = weights[1] - torch.cat([p.detach().flatten() for p in start.scorer.parameters()])
    assert 0 < moved.norm() <= 2 * 1e-2 * 1.001, "two steps, each at most as long as clipping allows"
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
