"""What differs from strategy to strategy: one small adapter for each that is supported.

Everything else in the package asks the adapter and never the strategy's class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
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
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_sft._lightning import before_loading, sizes_are_auto
from lightning_sft.errors import UserError
from lightning_sft.models.build import ModelSettings
from lightning_sft.models.frozen import hide_frozen
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.shard_loading import ShardLoading
from lightning_sft.training.fsdp2 import refuse_under_fsdp2
from lightning_sft.training.gradients import gradient_norm

SUPPORTED = (
    "auto (one device), ddp, ModelParallelStrategy with its sizes set (FSDP2, tensor parallelism), fsdp, "
    "deepspeed_stage_2, deepspeed_stage_3; configs/strategy/ holds a fragment for each"
)


class StrategyAdapter:
    """What a strategy needs from the module. The defaults are those of one device.

    Args:
        strategy: Lightning's strategy.

    Attributes:
        drops_frozen: whether a checkpoint of an adapter run may leave out the frozen base.
        scales_loss: the strategy keeps gradients to itself, so the loss must carry the exact factor beforehand.
        callable_inside: the scorer can be called once it is sharded, and not only the strategy's wrapper around it.
        takes_snapshots: copies of what trains can change places with it, as objectives with snapshots need.
        loads_shards: ``shard`` takes a model without its weights.
    """

    drops_frozen = True
    scales_loss = False
    callable_inside = True
    takes_snapshots = True
    loads_shards = False

    def __init__(self, strategy: Strategy) -> None:
        self.strategy = strategy

    def check(self, trainer: Trainer, settings: ModelSettings, stage: str) -> None:
        """Raise `UserError` for settings that this strategy cannot work with.

        Args:
            trainer: its accumulation and number of ranks are read.
            settings: of the model.
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        """

    def refuse_frozen_reference(self) -> None:
        """Raise `UserError` if a frozen reference model cannot be placed, or sharded, as the model is."""

    def shard(self, scorer: TokenScorer, settings: ModelSettings, loading: ShardLoading | None = None) -> None:
        """Shard a model, if the strategy shards.

        Args:
            scorer: holds the model.
            settings: of the model; say whether its frozen part belongs into checkpoints.
            loading: reads the weights that the model does not have yet; None where it has them.
        """

    def before_loading(self, check: Callable[[Path], None]) -> None:
        """Arrange that a checkpoint is looked at first, where the strategy loads it ahead of the module's hooks."""

    @property
    def data_parallel_size(self) -> int:
        """Number of ranks that see different rows; the strategy averages gradients over them."""
        sharing = getattr(self.strategy, "distributed_sampler_kwargs", {})  # of strategies with several ranks
        return int(sharing.get("num_replicas", 1))

    def sum_over_rows(self, sums: Tensor) -> Tensor:
        """Sum a vector over all ranks that see different rows."""
        total = self.strategy.reduce(sums, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def gradient_norm(self, gradients: Iterable[Tensor]) -> Tensor | None:
        """Return the norm of all gradients before clipping, whole on every rank; None where nobody can see them."""
        return gradient_norm(gradients)

    def clip(self, value: float, algorithm: str) -> bool:
        """Clip the gradients by the strategy's own means; return False to leave it to Lightning."""
        return False


class SingleDevice(StrategyAdapter):
    """One device."""


class DataParallel(StrategyAdapter):
    """DDP: every rank holds the whole model."""


class FullyShard(StrategyAdapter):
    """FSDP2 over the data-parallel dimension of ModelParallelStrategy's mesh, layers split over the other one."""

    takes_snapshots = False
    loads_shards = True

    def __init__(self, strategy: ModelParallelStrategy) -> None:
        super().__init__(strategy)
        self.mesh = strategy.device_mesh

    @override
    def check(self, trainer: Trainer, settings: ModelSettings, stage: str) -> None:
        _refuse_predict(stage, "FSDP2")
        refuse_under_fsdp2(settings, self.mesh["tensor_parallel"].size(), trainer.world_size)

    @override
    def refuse_frozen_reference(self) -> None:
        if self.mesh["tensor_parallel"].size() > 1:
            _refuse_reference("tensor parallelism, which splits the layers of the model alone")

    @override
    def shard(self, scorer: TokenScorer, settings: ModelSettings, loading: ShardLoading | None = None) -> None:
        from lightning_sft.models.sharding import shard_fully
        from lightning_sft.models.tensor_parallel import split_layers

        if self.mesh["tensor_parallel"].size() > 1:
            split_layers(scorer.causal_lm, self.mesh["tensor_parallel"])
        shard_fully(scorer, self.mesh["data_parallel"])
        if loading is not None and loading.refusal is None:
            loading.fill(scorer, self.strategy.root_device)
        elif loading is not None:
            rank_zero_info(f"Each rank first loads the whole model into its main memory: {loading.refusal}.")
        if settings.base_comes_back:  # a filter of the finished checkpoint would gather the base first
            hide_frozen(scorer)

    @override
    def before_loading(self, check: Callable[[Path], None]) -> None:
        assert isinstance(self.strategy, ModelParallelStrategy)
        before_loading(self.strategy, check)

    @override
    def sum_over_rows(self, sums: Tensor) -> Tensor:
        group = self.mesh["data_parallel"].get_group()
        total = self.strategy.reduce(sums, group, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total


class FullyShard1(StrategyAdapter):
    """FSDP1: Lightning wraps the whole module as the root, and the layers are wrapped here. Needs GPUs."""

    drops_frozen = False
    callable_inside = False
    takes_snapshots = False

    @override
    def refuse_frozen_reference(self) -> None:
        _refuse_reference("FSDP1, which would flatten, and offload, its weights with those that train")

    @override
    def check(self, trainer: Trainer, settings: ModelSettings, stage: str) -> None:
        _refuse_predict(stage, "FSDP1")
        if settings.torch_compile:
            raise UserError("torch_compile does not go with FSDP1 here. Set torch_compile: false, or use ddp.")

    @override
    def shard(self, scorer: TokenScorer, settings: ModelSettings, loading: ShardLoading | None = None) -> None:
        from lightning_sft.models.sharding import wrap_layers

        wrap_layers(scorer)

    @override
    def gradient_norm(self, gradients: Iterable[Tensor]) -> None:
        """Return nothing: FSDP1 shows shards that do not say what they are shards of."""

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
    takes_snapshots = False

    @override
    def refuse_frozen_reference(self) -> None:
        _refuse_reference("DeepSpeed, which would partition, and offload, its weights with those that train")

    @override
    def gradient_norm(self, gradients: Iterable[Tensor]) -> None:
        """Return nothing: the gradients live inside DeepSpeed's engine."""

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


def _refuse_reference(why: str) -> None:
    raise UserError(
        "The objective compares the model with a frozen reference model of its own, and the run uses "
        f"{why}. Use configs/strategy/fsdp2.yaml or trainer.strategy: ddp; or train an adapter without "
        "model.reference: the model with the adapter switched off is the reference then."
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


def refuse_auto_sizes(strategy: Strategy) -> None:
    """Raise if ModelParallelStrategy is to choose its sizes; must run before it sets up its processes.

    Raises:
        UserError: says which sizes to give.
    """
    if isinstance(strategy, ModelParallelStrategy) and sizes_are_auto(strategy):
        raise UserError(
            "ModelParallelStrategy has data_parallel_size or tensor_parallel_size on 'auto', with which all devices of "
            "a node share the same rows and nothing is sharded over the data. Set both: data_parallel_size: "
            f"{strategy.num_nodes * strategy.num_processes} and tensor_parallel_size: 1, as "
            "configs/strategy/fsdp2.yaml does, or a larger tensor_parallel_size to split layers; their product is the "
            "number of ranks."
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
