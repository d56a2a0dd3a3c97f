"""What strategies need and refuse, as far as it shows without their hardware."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy, Strategy

from lightning_sft.errors import UserError
from lightning_sft.models.build import ModelSettings
from lightning_sft.training.strategies import DataParallel, DeepSpeed, SingleDevice, adapter_of


def trainer_with(strategy: Strategy, accumulate: int = 1) -> Any:
    return SimpleNamespace(strategy=strategy, accumulate_grad_batches=accumulate, world_size=1)


def deepspeed(stage: int) -> DeepSpeedStrategy:
    """The strategy without its package, which only its constructor asks for."""
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    strategy.config = {"zero_optimization": {"stage": stage}}
    return strategy


def test_every_strategy_has_its_adapter() -> None:
    pairs = {
        SingleDevice: SingleDeviceStrategy(torch.device("cpu")),
        DataParallel: DDPStrategy(),
        DeepSpeed: deepspeed(2),
    }
    for kind, strategy in pairs.items():
        assert type(adapter_of(trainer_with(strategy))) is kind


def test_other_strategies_are_refused_with_the_list() -> None:
    kind = type("Other", (Strategy,), {})
    kind.__abstractmethods__ = frozenset()
    with pytest.raises(
        UserError, match=r"The strategy Other is not supported\. Supported: .*ddp.*FSDP2.*deepspeed_stage_3"
    ):
        adapter_of(trainer_with(kind.__new__(kind)))


@pytest.mark.parametrize(
    ("stage", "accumulate", "head", "verb", "message"),
    [
        (2, 4, "auto", "fit", "accumulate_grad_batches is 4 under DeepSpeed"),
        (3, 1, "auto", "fit", "head is 'auto' under DeepSpeed stage 3.*head: reference"),
        (2, 1, "auto", "predict", "predict does not run under DeepSpeed"),
    ],
)
def test_deepspeed_refuses_what_it_cannot_do(stage: int, accumulate: int, head: Any, verb: str, message: str) -> None:
    trainer = trainer_with(deepspeed(stage), accumulate)
    with pytest.raises(UserError, match=message):
        adapter_of(trainer).check(trainer, ModelSettings("toy", head=head), verb)


def test_deepspeed_allows_the_rest() -> None:
    for stage, head in ((2, "auto"), (3, "reference")):
        trainer = trainer_with(deepspeed(stage))
        adapter_of(trainer).check(trainer, ModelSettings("toy", head=head), "fit")  # type: ignore[arg-type]
        assert adapter_of(trainer).scales_loss
