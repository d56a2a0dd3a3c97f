"""What differs from strategy to strategy: one small adapter for each that is supported.

Everything else in the package asks the adapter and never the strategy's class.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from typing_extensions import override

from lightning_sft._lightning import saves_shards
from lightning_sft.errors import UserError
from lightning_sft.models.build import ModelSettings
from lightning_sft.models.scorer import TokenScorer

SUPPORTED = (
    "auto (one device), ddp, ModelParallelStrategy with data_parallel_size set (FSDP2), fsdp, deepspeed_stage_2, "
    "deepspeed_stage_3; configs/strategy/ holds a fragment for each"
)


class StrategyAdapter:
    """What a strategy needs from the module. The defaults are those of one device.

    Args:
        strategy: Lightning's strategy.

    Attributes:
        drops_frozen: whether a checkpoint of an adapter run may leave out the frozen base.
        scales_loss: the strategy keeps gradients to itself, so the loss must carry the exact factor beforehand.
    """

    drops_frozen = True
    scales_loss = False

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def check(self, trainer: Trainer, settings: ModelSettings, stage: str) -> None:
        """Raise :class:`UserError` for settings that this strategy cannot work with.

        Args:
            trainer: its accumulation and number of ranks are read.
            settings: of the model.
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """

    def shard(self, scorer: TokenScorer) -> None:
        """Shard a model whose weights are loaded, if the strategy shards."""

    def clip(self, value: float, algorithm: str) -> bool:
        """Clip the gradients by the strategy's own means; return False to leave it to Lightning."""
        return False


class SingleDevice(StrategyAdapter):
    """One device."""


class DataParallel(StrategyAdapter):
    """DDP: every rank holds the whole model."""


class FullyShard(StrategyAdapter):
    """FSDP2: ``fully_shard`` over the data-parallel dimension of ModelParallelStrategy's mesh."""

    def __init__(self, strategy: ModelParallelStrategy) -> None:
        super().__init__(strategy)
        self.mesh = strategy.device_mesh
        # Loading a folder of shards asks it for every parameter that the model has.
        self.drops_frozen = not saves_shards(strategy)

    @override
    def check(self, trainer: Trainer, settings: ModelSettings, stage: str) -> None:
        _refuse_predict(stage, "FSDP2")
        data, tensor = (self.mesh[name].size() for name in ("data_parallel", "tensor_parallel"))
        if tensor > 1:
            raise UserError(
                f"ModelParallelStrategy has data_parallel_size {data} and tensor_parallel_size {tensor}: with 'auto' "
                "all devices of a node share the same rows, and nothing is sharded over the data. Tensor parallelism "
                f"is not supported. Set data_parallel_size: {trainer.world_size} and tensor_parallel_size: 1, as "
                "configs/strategy/fsdp2.yaml does."
            )
        if settings.quantization is not None:
            raise UserError(
                f"quantization is {settings.quantization!r} under FSDP2, which cannot shard quantised weights here. "
                "Use trainer.strategy: ddp, or set quantization: null."
            )
        if settings.torch_compile:
            raise UserError(
                "torch_compile does not go with FSDP2 here: the shards are gathered by hooks that break the graph. "
                "Set torch_compile: false, or use trainer.strategy: ddp."
            )

    @override
    def shard(self, scorer: TokenScorer) -> None:
        from lightning_sft.models.sharding import shard_fully

        shard_fully(scorer, self.mesh["data_parallel"])


class FullyShard1(StrategyAdapter):
    """FSDP1: Lightning wraps the whole module as the root, and the layers are wrapped here. Needs GPUs."""

    drops_frozen = False

    @override
    def check(self, trainer: Trainer, settings: ModelSettings, stage: str) -> None:
        _refuse_predict(stage, "FSDP1")
        if settings.torch_compile:
            raise UserError("torch_compile does not go with FSDP1 here. Set torch_compile: false, or use ddp.")

    @override
    def shard(self, scorer: TokenScorer) -> None:
        from lightning_sft.models.sharding import wrap_layers

        wrap_layers(scorer)

    @override
    def clip(self, value: float, algorithm: str) -> bool:
        if algorithm != "norm":
            return False
        root: Any = self.strategy.model
        root.clip_grad_norm_(value)  # the norm over all shards, which Lightning's own clipping refuses to take
        return True


class DeepSpeed(StrategyAdapter):
    """ZeRO stages 2 and 3: gradients live inside DeepSpeed's engine, which also clips. Needs GPUs and the extra."""

    drops_frozen = False
    scales_loss = True

    @override
    def check(self, trainer: Trainer, settings: ModelSettings, stage: str) -> None:
        assert isinstance(self.strategy, DeepSpeedStrategy)
        _refuse_predict(stage, "DeepSpeed")
        if trainer.accumulate_grad_batches != 1:
            raise UserError(
                f"accumulate_grad_batches is {trainer.accumulate_grad_batches} under DeepSpeed, which keeps gradients "
                "to itself: they cannot be divided by a number that is known only after the last micro-batch. Use 1 "
                f"with a larger data.batch_size, or another strategy: {SUPPORTED}."
            )
        if self.strategy.zero_stage_3 and settings.head != "reference":
            raise UserError(
                f"head is {settings.head!r} under DeepSpeed stage 3, which keeps the unembedding in pieces outside of "
                "its own layer. Set model.head: reference, as configs/strategy/deepspeed_3.yaml does, or use stage 2."
            )


def _refuse_predict(stage: str, name: str) -> None:
    if stage == "predict":
        raise UserError(
            f"predict does not run under {name}: ranks answer different numbers of prompts, and shards are gathered "
            "by all ranks together. Use trainer.strategy: auto on one device, or ddp; a checkpoint in one file loads "
            "there."
        )


_ADAPTERS: tuple[tuple[type[Strategy], type[StrategyAdapter]], ...] = (
    (ModelParallelStrategy, FullyShard),
    (FSDPStrategy, FullyShard1),
    (DeepSpeedStrategy, DeepSpeed),  # before DDP, which it derives from
    (DDPStrategy, DataParallel),
    (SingleDeviceStrategy, SingleDevice),
)


def adapter_of(trainer: Trainer) -> StrategyAdapter:
    """Return the adapter of a trainer's strategy.

    Raises:
        UserError: a strategy that is not supported; lists those that are.
    """
    strategy = trainer.strategy
    for kind, adapter in _ADAPTERS:
        if isinstance(strategy, kind):
            return adapter(strategy)
    raise UserError(f"The strategy {type(strategy).__name__} is not supported. Supported: {SUPPORTED}.")
