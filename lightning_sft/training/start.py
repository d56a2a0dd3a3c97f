"""What a fit looks at before its first step: facts for the objective, its first statistics, the length of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, LearningRateFinder, ModelPruning
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft._lightning import callbacks_of, is_told
from lightning_sft.errors import UserError
from lightning_sft.head import HeadOutput
from lightning_sft.models.build import ModelSettings
from lightning_sft.models.capability import capability, emulated, fastest
from lightning_sft.models.mode import eval_mode
from lightning_sft.models.packing import attended
from lightning_sft.models.positions import row_limit
from lightning_sft.models.reference import check_same_vocabulary
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.shard_loading import ShardLoading
from lightning_sft.objectives import Objective, RunFacts
from lightning_sft.objectives.base import Denominator
from lightning_sft.training.accumulation import StepAccumulator, micro_batch_sums
from lightning_sft.training.strategies import adapter_of, refuse_auto_sizes


def with_dtype(settings: ModelSettings, trainer: Trainer | None) -> ModelSettings:
    """Return settings whose dtype is decided, the same on all ranks; warn of what the device only emulates.

    Args:
        settings: their ``dtype`` may be ``"fastest"``.
        trainer: its device, ranks and precision are read; None is one process on the CPU.
    """
    device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
    precision = "32-true" if trainer is None else str(trainer.precision)
    if settings.dtype == "fastest":
        dtype, why = fastest(capability(device), settings.has_adapter)
        if trainer is not None:  # ranks may measure differently, and must not differ
            dtype, why = trainer.strategy.broadcast((dtype, why))
        if not is_told(trainer):
            rank_zero_info(why)
        settings = replace(settings, dtype=dtype)
    for asked in {settings.dtype, precision}:
        if "16" in asked and (warning := emulated(capability(device), asked)):
            rank_zero_warn(warning)
    return settings


def shard_loading(trainer: Trainer | None) -> ShardLoading | None:
    """Return what loads a model shard by shard, where the trainer's strategy can take one."""
    return ShardLoading() if trainer is not None and adapter_of(trainer).loads_shards else None


def prepare(
    objective: Objective,
    trainer: Trainer,
    denominator: Denominator,
    tokenizer: PreTrainedTokenizerBase,
    *,
    training: bool,
    has_reference: bool,
) -> None:
    """Tell an objective what it may know of a run.

    Args:
        objective: gets the facts.
        trainer: its steps and its data module are read.
        denominator: what the run divides by.
        tokenizer: its length, its special tokens and the ids of texts are read.
        training: whether optimizer steps follow.
        has_reference: whether the run can score tokens under a reference model.

    Raises:
        UserError: the run cannot give what the objective needs, or would train on nothing.
    """
    if training:
        _refuse_silence(trainer)
    total = trainer.estimated_stepping_batches if training else None
    facts = RunFacts(
        sources=tuple(getattr(getattr(trainer, "datamodule", None), "source_names", ())),
        total_steps=int(total) if total is not None and total != float("inf") else None,
        has_reference=has_reference,
        takes_snapshots=adapter_of(trainer).takes_snapshots,
        denominator=denominator,
        special_tokens=tuple(i for i, token in tokenizer.added_tokens_decoder.items() if token.special),
        vocabulary=len(tokenizer),
        token_ids=lambda text: list(tokenizer(text, add_special_tokens=False).input_ids),
        training=training,
    )
    objective.prepare(facts)


def check_reference(
    objective: Objective, settings: ModelSettings, tokenizer: PreTrainedTokenizerBase, trainer: Trainer | None
) -> None:
    """Check, before anything is loaded, that an objective's reference model can be had in a run.

    Args:
        objective: says what it compares with.
        settings: name the reference, if it is another checkpoint.
        tokenizer: the model's own.
        trainer: its strategy must be able to place the reference; None outside of a run.

    Raises:
        UserError: another vocabulary, or a strategy that cannot place the reference.
    """
    if objective.reference == "none":
        if settings.reference is not None:
            rank_zero_warn(
                f"model.reference is {settings.reference!r}, and {type(objective).__name__} compares with nothing: it "
                "is not loaded."
            )
        return
    if settings.reference is not None and not objective.snapshot_every:
        check_same_vocabulary(tokenizer, settings.reference, trust_remote_code=settings.trust_remote_code)
    is_frozen_model = settings.reference is not None or not settings.has_adapter
    if trainer is not None and is_frozen_model and not objective.snapshot_every:
        adapter_of(trainer).refuse_frozen_reference()


def before_callbacks(module: LightningModule) -> None:
    """Build the model before the callbacks' ``setup`` where one of them looks at its parameters there.

    Args:
        module: builds the model in ``configure_model``, which may be called twice.

    Raises:
        UserError: Lightning's LearningRateFinder, or callbacks that cannot work here.
    """
    refuse_auto_sizes(module.trainer.strategy)
    callbacks = callbacks_of(module.trainer)
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder):
            raise UserError(
                "LearningRateFinder (and Tuner.lr_find) writes the rate into an attribute of the module, but the rate "
                "belongs to the optimizer, and the run after it would draw other random numbers. Use LearningRateSweep "
                "with apply: true instead, which makes the same test and leaves no trace of it."
            )
        if isinstance(callback, BackboneFinetuning) and not hasattr(module, "backbone"):
            raise UserError(
                "BackboneFinetuning unfreezes an attribute `backbone`, which this module does not have. Subclass "
                "BaseFinetuning, or train an adapter, such as peft.LoraConfig."
            )
    if any(isinstance(callback, BaseFinetuning | ModelPruning) for callback in callbacks):
        strategy = module.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy | FSDPStrategy | DeepSpeedStrategy):
            raise UserError(
                "Callbacks that choose parameters before the run starts, such as BaseFinetuning and ModelPruning, need "
                f"the whole model then, and {type(strategy).__name__} shards it. Use one device, or ddp."
            )
        module.configure_model()


def number_of_sources(trainer: Trainer) -> int:
    """Return how many sources the training rows are of, where the data module tells; 0 elsewhere."""
    sources_of = getattr(getattr(getattr(trainer, "datamodule", None), "sets", None), "sources_of", {})
    return len(sources_of.get("train", ()))


@torch.no_grad()
def seed_objective(
    objective: Objective, forward: Callable[[dict[str, Tensor]], HeadOutput], scorer: TokenScorer, trainer: Trainer
) -> None:
    """Let an objective that asks for it see the first step's statistics before the first gradient is made.

    Args:
        objective: to seed.
        forward: scores a batch under it.
        scorer: what is trained; in eval mode meanwhile.
        trainer: in a fit; its rows are read, and no random number is drawn.
    """
    if not objective.needs_seed():
        return
    datamodule = getattr(trainer, "datamodule", None)
    loader: Any = trainer.train_dataloader if datamodule is None else datamodule.train_dataloader()
    first = StepAccumulator()
    with isolate_rng(), eval_mode(scorer), trainer.precision_plugin.forward_context():
        for batch in islice(loader, trainer.accumulate_grad_batches):
            batch = trainer.strategy.batch_to_device(batch)
            first.add_sums(micro_batch_sums(forward(batch), objective, attended(batch)))
    first.close(adapter_of(trainer))
    objective.seed(first.totals.objective())


def check_length(model: PreTrainedModel, datamodule: Any) -> None:
    """Raise if a model fails on the longest row, warn if it was trained on shorter ones.

    Args:
        model: the model that reads the rows.
        datamodule: its ``report`` of each set holds the lengths of rows in tokens; without one nothing is checked.

    Raises:
        UserError: names both lengths.
    """
    reports = getattr(datamodule, "report", {})
    longest = max((int(report.lengths.max()) for report in reports.values() if len(report.lengths)), default=0)
    limit = row_limit(model, longest)
    if limit is None:
        return
    message = (
        f"The longest row has {longest} tokens, but {type(model).__name__} has {limit.tokens} positions. Set "
        f"data.max_length to {limit.tokens} or less, and say by data.truncation whether longer rows are cut or dropped."
    )
    if limit.is_hard:
        raise UserError(message)
    rank_zero_warn(message)


def _refuse_silence(trainer: Trainer) -> None:
    """Raise for settings with which a fit would end well and not be what was asked for."""
    if trainer.limit_train_batches == 0:
        raise UserError(
            "trainer.limit_train_batches is 0: nothing would be trained. Allowed: a number of batches, or a share of "
            "the epoch such as 0.1. To read the metrics alone, use `lightning validate`."
        )
    clip = trainer.gradient_clip_val
    if clip is not None and clip < 0:
        raise UserError(
            f"trainer.gradient_clip_val is {clip}, which would clip nothing or turn gradients round. Allowed: the "
            "largest norm or value, such as 1.0; null or 0 is no clipping."
        )
