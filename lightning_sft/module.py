"""SFTModule: wiring between a causal language model, a head, an objective and Lightning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftConfig
from torch import Tensor
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft._lightning import attached_trainer, made_by_cli
from lightning_sft._lightning.steps import log_at_optimizer_steps
from lightning_sft.advice.auto import AutoObjective
from lightning_sft.checkpoints import hparams
from lightning_sft.checkpoints.io import write_safely
from lightning_sft.checkpoints.resume import ResumeState, position_facts
from lightning_sft.evaluation import Batch, EvaluatedModule
from lightning_sft.head import HeadKind, HeadOutput
from lightning_sft.metrics.answers import numbers_of_samples
from lightning_sft.models import tuners
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.loading import Dtype, Init
from lightning_sft.models.quantization import Quantization
from lightning_sft.models.scorer import Weighting
from lightning_sft.models.tokenizer import TokenizerSettings
from lightning_sft.objectives import NLL, Objective
from lightning_sft.objectives.base import Denominator
from lightning_sft.resuming import ResumableModule
from lightning_sft.training import start
from lightning_sft.training.clipping import clip_gradients
from lightning_sft.training.exact_step import ExactSteps
from lightning_sft.training.extra_loss import TakesExtraLoss
from lightning_sft.training.nonfinite import OnNonfinite
from lightning_sft.training.optim import OptimizationSettings, ParameterRule
from lightning_sft.training.schedules import ScheduleName, follow_validation, go_on_along_own_curve
from lightning_sft.training.strategies import StrategyAdapter, adapter_of
from lightning_sft.training.totals import StepTotals


class SFTModule(TakesExtraLoss, ResumableModule, EvaluatedModule):
    """Fine-tune a Hugging Face causal language model under a swappable objective.

    The loss is delegated: decoder -> head -> `TokenScores` -> objective. Gradients are those of (sum of the
    losses over every micro-batch and rank of an optimizer step) / (denominator), however the step is split. The
    model is built in ``configure_model``.

    Args:
        model_name_or_path: hub name, local folder, GGUF file, or ``pkg://package/file.gguf``.
        objective: the loss of a token; `NLL` by default. ``"auto"``: the one that a reading of the training rows before
            the first step speaks for, see `AutoObjective`.
        adapter: a peft configuration of an adapter that acts inside modules, such as ``peft.LoraConfig``.
        adapter_path: a folder with an adapter to go on training, in place of ``adapter``.
        quantization: ``"int8"`` or ``"nf4"``: quantise the frozen base while loading it; needs the extra
            ``quantization``.
        optimizer: makes the optimizer from parameter groups.
        lr_scheduler: a name that transformers knows, or a callable that makes a scheduler; stepped once per optimizer
            step, or after each validation if it follows a metric.
        warmup_steps: steps of linear warm-up; beats ``warmup_ratio``.
        warmup_ratio: warm-up as a share of all optimizer steps.
        denominator: ``"all"``: gradients are divided by the supervised tokens of the optimizer step; ``"kept"``: by
            those that the objective keeps; ``"weights"``: by the sum of the tokens' absolute weights; ``"sequences"``:
            every row of the data counts the same.
        head: ``"auto"``: the chunked head if its logits equal the model's own, else the model's own logits with a
            warning; ``"fused"``: the chunked head or an error; ``"reference"``: the model's own logits;
            ``"cut_cross_entropy"``: that package's kernels on a GPU, without ``train/token_accuracy``.
        init: ``"pretrained"``, or ``"random"`` weights from the model's configuration.
        dtype: dtype of the weights (adapters stay in fp32); ``"auto"``: the checkpoint's; ``"fastest"``: the device's.
        config_overrides: fields of the model's configuration to change, such as ``{"attention_dropout": 0.1}``.
        attn_implementation: transformers' attention implementation; None is transformers' choice.
        gradient_checkpointing: recompute the decoder's activations in the backward pass.
        torch_compile: compile the decoder.
        neftune_noise_alpha: scale of NEFTune's uniform noise on the input embeddings in training; None is off.
        trust_remote_code: run code that a hub repository brings along.
        revision: revision of a hub name.
        tokenizer_name_or_path: another tokenizer than the model's own.
        chat_template: a Jinja chat template, or a file that holds one, in place of the tokenizer's own.
        add_special_tokens: special tokens to add; the embeddings grow to hold them.
        max_new_tokens: longest answer of ``predict``.
        reference: model that objectives with a reference compare with, or learn from, of the same vocabulary, by the
            names that ``model_name_or_path`` takes; None: the model before training.
        reference_dtype: dtype of its weights.
        lr_scheduler_kwargs: further arguments of a named schedule, such as ``{"min_lr_rate": 0.1}``.
        lr_scheduler_config: Lightning's ``interval``, ``frequency`` and ``monitor`` of the scheduler.
        parameter_rules: rates and weight decay by parameter name; see `ParameterRule`.
        on_nonfinite: what follows a loss that is not finite, on all ranks: ``"stop"``, or ``"skip"`` the step.
        pass_at_k: further k of ``val/pass_at_<k>``, the chance that one of k samples at temperature 1 is the answer.

    Raises:
        UserError: on settings that cannot work, as early as they are known.
    """

    def __init__(
        self,
        model_name_or_path: str,
        objective: Objective | Literal["auto"] | None = None,
        adapter: PeftConfig | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-5),
        # names first: they must survive a printed config
        lr_scheduler: ScheduleName | LRSchedulerCallable = "linear",
        warmup_steps: int | None = None,
        warmup_ratio: float = 0.0,
        denominator: Denominator = "all",
        head: HeadKind = "auto",
        init: Init = "pretrained",
        dtype: Dtype = "float32",
        config_overrides: dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        torch_compile: bool = False,
        neftune_noise_alpha: float | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        tokenizer_name_or_path: str | None = None,
        chat_template: str | None = None,
        add_special_tokens: list[str] | None = None,
        max_new_tokens: int = 256,
        adapter_path: str | None = None,
        quantization: Quantization | None = None,
        reference: str | None = None,
        reference_dtype: Dtype = "auto",
        on_nonfinite: OnNonfinite = "stop",
        lr_scheduler_kwargs: dict[str, Any] | None = None,
        lr_scheduler_config: dict[str, Any] | None = None,
        parameter_rules: list[ParameterRule] | None = None,
        pass_at_k: list[int] | None = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in {"self", "__class__"}}
        super().__init__()
        self.settings = ModelSettings.among(given)
        self.strict_loading = not self.settings.base_comes_back
        self.auto = AutoObjective(objective == "auto")
        self.objective = objective if isinstance(objective, Objective) else NLL()
        self.steps = ExactSteps(denominator, on_nonfinite)
        self.accumulator, self.loss_watch = self.steps.accumulator, self.steps.watch
        self.resume_state = ResumeState(self.settings.describe(), warmup_steps=warmup_steps, warmup_ratio=warmup_ratio)
        # Objects in a checkpoint would break weights_only loading. LightningCLI hands over plain data instead.
        self.save_hyperparameters(ignore=[] if made_by_cli() else hparams.objects_in(given), logger=False)
        hparams.drop_objects((self.hparams, self.hparams_initial))  # a subclass may have objects of its own
        self.make_optimizer = optimizer
        self.optimization = OptimizationSettings.among(given)
        self.max_new_tokens = max_new_tokens
        self.pass_at_k = numbers_of_samples(pass_at_k, "model.pass_at_k")
        self._tokenizer_settings = TokenizerSettings.among(given)
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = self._tokenizer_settings.load()
        return self._tokenizer

    def _rows(self, how: str) -> bool:
        """Return whether the data module's rows are ``packed``, or it ``wants_flat`` batches."""
        return bool(getattr(getattr(attached_trainer(self), "datamodule", None), how, False))

    @property
    def strategy_adapter(self) -> StrategyAdapter:
        """What the trainer's strategy needs."""
        return adapter_of(self.trainer)

    @override
    def configure_model(self) -> None:
        if hasattr(self, "scorer"):
            return
        with torch.device("cpu"):  # Lightning makes new tensors on a GPU here; what loads and tries a model does not
            start.check_reference(self.objective, self.settings, self.tokenizer, attached_trainer(self))
            how = {"packed": self._rows("packed"), "flat": self._rows("wants_flat")}
            settings = start.with_dtype(self.settings, attached_trainer(self))
            shards = start.shard_loading(attached_trainer(self))
            scorer = build_scorer(settings, self.objective, len(self.tokenizer), shards=shards, **how)
            self.takes_flat_batches, self.flat_refusal = scorer.flat_refusal is None, scorer.flat_refusal
            if attached_trainer(self) is not None:
                self.strategy_adapter.shard(scorer, self.settings, shards)
                self.strategy_adapter.before_loading(self.check_checkpoint)
            self.scorer = scorer

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = self.trainer.estimated_stepping_batches
        config, self.resume_state.optimizer = self.optimization.configure(self.make_optimizer, self.scorer, total)
        return cast("OptimizerLRScheduler", config)

    @override
    def on_validation_end(self) -> None:
        follow_validation(self.trainer)

    @override
    def configure_callbacks(self) -> list[Callback]:
        from lightning_sft.callbacks.defaults import default_callbacks

        write_safely(self.trainer)
        log_at_optimizer_steps(self.trainer, lambda: self.loaded_step)
        start.before_callbacks(self)  # no hook comes earlier
        return default_callbacks(self.trainer)

    @override
    def setup(self, stage: str) -> None:
        self.strategy_adapter.check(self.trainer, self.settings, stage)
        self._prepare(self.objective, training=stage == "fit", has_reference=True)  # build_scorer makes what it needs

    def _prepare(self, objective: Objective, **known: bool) -> None:
        start.prepare(objective, self.trainer, self.accumulator.denominator, self.tokenizer, **known)

    def use_objective(self, objective: Objective) -> None:
        """Train under another objective from here on, in a fit under way.

        Raises:
            UserError: the run cannot give what the objective needs, such as a reference model.
        """
        training = self.trainer.state.fn == "fit"
        self._prepare(objective, training=training, has_reference=self.scorer.can_compare(objective))
        self.objective = objective.to(self.device)
        start.seed_objective(self.objective, self, self.scorer, self.trainer)

    def _pick_objective(self) -> None:
        """Pick under ``auto``, where a checkpoint, which some strategies load after on_fit_start, has not done so."""
        if self.auto.is_open and self.trainer.state.fn == "fit":
            from lightning_sft.callbacks.capability_probe import reading_before

            self.use_objective(self.auto.pick(reading_before(self.trainer, self)))

    @override
    def on_validation_start(self) -> None:
        self._pick_objective()  # before a validation ahead of the first step
        super().on_validation_start()

    @override
    def on_fit_start(self) -> None:
        self.resume_state.check(position_facts(self.trainer))  # where the checkpoint is loaded before this hook
        start.check_length(self.scorer.causal_lm, getattr(self.trainer, "datamodule", None))

    @override
    def on_train_start(self) -> None:
        self.resume_state.check(position_facts(self.trainer))  # where it is loaded after on_fit_start
        self.steps.reset()
        self._pick_objective()
        start.seed_objective(self.objective, self, self.scorer, self.trainer)
        if self.resume_state.restore_rng():
            go_on_along_own_curve(self.trainer)
            rank_zero_info(f"Resumed at step {self.trainer.global_step} from {Path(str(self.trainer.ckpt_path)).name}")

    @property
    def step_totals(self) -> StepTotals:
        """Sums of the last optimizer step over every micro-batch and rank."""
        return self.accumulator.totals

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps without a token to learn from, so far."""
        return self.accumulator.skipped_steps

    @override
    def forward(self, batch: Batch, weighting: Weighting = "none") -> HeadOutput:
        """Score the labels of a batch under the objective; see `TokenScorer.forward`."""
        output = self.scorer(batch, self.objective, weighting)
        assert isinstance(output, HeadOutput)
        return output

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Return the loss of a micro-batch, losses and scores; a subclass may add ``extra_loss``: see `ExtraLoss`."""
        self.steps.before_forward(self.trainer)
        output = self(batch, self.accumulator.weighting)
        loss = self.steps.loss(output, batch, self.objective, self.trainer)
        return {"loss": loss, "losses": output.losses, "scores": output.scores}

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        # ours follows the strategy's reduction, and precedes every hook and clipping
        super().backward(loss, *args, **self.steps.backward_options(), **kwargs)
        self.steps.after_backward(self.trainer, self.scorer.parameters())

    @override
    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if not clip_gradients(self.trainer, optimizer, gradient_clip_val or 0.0, gradient_clip_algorithm or "norm"):
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        assert optimizer_closure is not None
        result = optimizer_closure()
        if self.accumulator.learned:  # else no update, no weight decay, no moment decay; counted and logged
            super().optimizer_step(epoch, batch_idx, optimizer, lambda: result)
            tuners.after_step(self.scorer.model, self.trainer.global_step)
            self.objective.update(self.step_totals.objective())
            self.scorer.step_ended(self.objective)
