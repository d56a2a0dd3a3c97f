"""SFTModule: wiring between a causal language model, a head, an objective and Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftConfig
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft._lightning import attached_trainer, callbacks_of, made_by_cli
from lightning_sft.checkpoints.resume import ResumableModule
from lightning_sft.errors import UserError
from lightning_sft.head import HeadKind
from lightning_sft.metrics import TokenAverages
from lightning_sft.models.access import position_limit, text_config
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.generation import generate
from lightning_sft.models.loading import Dtype, Init, load_tokenizer
from lightning_sft.models.packing import check_documents_apart
from lightning_sft.models.quantization import Quantization
from lightning_sft.objectives import NLL, Objective, RunFacts
from lightning_sft.training.accumulation import Denominator
from lightning_sft.training.optim import (
    ScheduleName,
    checked_optimizer,
    describe_optimizer,
    parameter_groups,
    schedule,
    warmup_length,
)
from lightning_sft.training.strategies import refuse_auto_sizes
from lightning_sft.training.token_exact import Batch


class SFTModule(ResumableModule):
    """Fine-tune a Hugging Face causal language model under a swappable objective.

    The loss is delegated: decoder -> head -> `TokenScores` -> objective. Gradients are those of (sum of the
    losses over every micro-batch and rank of an optimizer step) / (denominator), however the step is split. The
    model is built in ``configure_model``.

    Args:
        model_name_or_path: hub name, local folder, GGUF file, or ``pkg://package/file.gguf``.
        objective: the loss of a token; `NLL` by default.
        adapter: a peft configuration of an adapter that acts inside modules, such as ``peft.LoraConfig``.
        adapter_path: a folder with an adapter to go on training, in place of ``adapter``.
        quantization: ``"int8"`` or ``"nf4"``: quantise the frozen base while loading it; needs the extra
            ``quantization``.
        optimizer: makes the optimizer from parameter groups.
        lr_scheduler: ``"constant"``, ``"linear"``, ``"cosine"``, or a callable that makes a scheduler; stepped once
            per optimizer step.
        warmup_steps: steps of linear warm-up; beats ``warmup_ratio``.
        warmup_ratio: warm-up as a share of all optimizer steps.
        denominator: ``"all"``: gradients are divided by the supervised tokens of the optimizer step; ``"kept"``: by
            those that the objective keeps.
        head: ``"auto"``: the chunked head if its logits equal the model's own, else the model's own logits with a
            warning; ``"fused"``: the chunked head or an error; ``"reference"``: the model's own logits.
        init: ``"pretrained"``, or ``"random"`` weights from the model's configuration.
        dtype: dtype of the model's weights (adapters stay in fp32); ``"auto"`` is the checkpoint's own.
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

    Raises:
        UserError: on settings that cannot work, as early as they are known.
    """

    def __init__(
        self,
        model_name_or_path: str,
        objective: Objective | None = None,
        adapter: PeftConfig | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=2e-5),
        lr_scheduler: ScheduleName | LRSchedulerCallable = "linear",  # names first: they must survive a printed config
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
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in {"self", "__class__"}}
        settings = ModelSettings(
            model_name_or_path,
            adapter=adapter,
            adapter_path=adapter_path,
            quantization=quantization,
            head=head,
            init=init,
            dtype=dtype,
            config_overrides=config_overrides,
            attn_implementation=attn_implementation,
            gradient_checkpointing=gradient_checkpointing,
            torch_compile=torch_compile,
            neftune_noise_alpha=neftune_noise_alpha,
            trust_remote_code=trust_remote_code,
            revision=revision,
        )
        super().__init__(settings, NLL() if objective is None else objective, denominator)
        # Objects in a checkpoint would break weights_only loading. LightningCLI hands over plain data instead.
        objects = [] if made_by_cli() else [k for k, v in given.items() if not _is_plain(v)]
        self.save_hyperparameters(ignore=objects, logger=False)
        for hparams in (self.hparams, self.hparams_initial):  # a subclass may have objects of its own
            for name in [k for k, v in hparams.items() if not _is_plain(v)]:
                del hparams[name]
        self.tokenizer_name_or_path = tokenizer_name_or_path or model_name_or_path
        self.chat_template = chat_template
        self.add_special_tokens = tuple(add_special_tokens or ())
        self.make_optimizer = optimizer
        self.make_lr_scheduler: Callable[[Optimizer], Any] | ScheduleName = lr_scheduler
        self.warmup_steps = warmup_steps
        self.warmup_ratio = warmup_ratio
        self.max_new_tokens = max_new_tokens
        self.averages = TokenAverages()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._predict_rows: dict[int, Any] = {}

    # ------------------------------------------------------------------ model, tokenizer, optimizer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded when first asked for."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(
                self.tokenizer_name_or_path,
                chat_template=self.chat_template,
                add_special_tokens=self.add_special_tokens,
                revision=self.settings.revision if self.tokenizer_name_or_path == self.settings.name else None,
                trust_remote_code=self.settings.trust_remote_code,
            )
        return self._tokenizer

    @property
    def _packed(self) -> bool:
        """Whether the data module packs several rows into one."""
        return bool(getattr(getattr(attached_trainer(self), "datamodule", None), "packed", False))

    @override
    def configure_model(self) -> None:
        if not hasattr(self, "scorer"):
            scorer = build_scorer(self.settings, self.objective, len(self.tokenizer), self._packed)
            if attached_trainer(self) is not None:
                if self._packed and not self.strategy_adapter.callable_inside:
                    check_documents_apart(scorer)
                self.strategy_adapter.shard(scorer, self.settings)
                self.strategy_adapter.before_loading(self.check_checkpoint)
            self.scorer = scorer

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        total = self.trainer.estimated_stepping_batches
        optimizer = checked_optimizer(self.make_optimizer, parameter_groups(self.scorer))
        warmup = warmup_length(total, self.warmup_steps, self.warmup_ratio)
        scheduler = schedule(optimizer, self.make_lr_scheduler, total, warmup)
        named = self.make_lr_scheduler if isinstance(self.make_lr_scheduler, str) else type(scheduler).__name__
        self._optimizer_as_asked = {"optimizer": describe_optimizer(optimizer), "lr_scheduler": named}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def configure_callbacks(self) -> list[Callback]:
        from lightning_sft.callbacks import DataReport, GenerationMonitor, TrainingMetrics

        refuse_auto_sizes(self.trainer.strategy)  # no hook comes earlier
        defaults: list[Callback] = (
            [] if self.trainer.barebones else [DataReport(), TrainingMetrics(), GenerationMonitor()]
        )
        given = callbacks_of(self.trainer)
        return [c for c in defaults if not any(isinstance(g, type(c)) for g in given)]

    @override
    def setup(self, stage: str) -> None:
        self.strategy_adapter.check(self.trainer, self.settings, stage)
        # the reference: the adapters switched off, or a frozen copy that build_scorer makes
        self.objective.prepare(self._run_facts(stage, has_reference=True))

    def _run_facts(self, stage: str, has_reference: bool) -> RunFacts:
        total = self.trainer.estimated_stepping_batches if stage == "fit" else None
        return RunFacts(
            sources=tuple(getattr(getattr(self.trainer, "datamodule", None), "source_names", ())),
            total_steps=int(total) if total is not None and total != float("inf") else None,
            has_reference=has_reference,
            denominator=self.denominator,
            vocabulary=len(self.tokenizer),
            training=stage == "fit",
        )

    def use_objective(self, objective: Objective) -> None:
        """Train under another objective from here on, in a fit under way.

        Raises:
            UserError: the run cannot give what the objective needs, such as a reference model.
        """
        objective.prepare(self._run_facts("fit", self.settings.has_adapter or self.objective.reference != "none"))
        self.objective = objective.to(self.device)
        if objective.needs_seed():
            self.seed_objective()

    # ------------------------------------------------------------------ evaluation

    @override
    def on_predict_start(self) -> None:
        self._predict_rows = {}

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> dict[str, Any]:
        output = self(batch)
        self.averages.update(output.losses, output.scores)
        return {"losses": output.losses, "scores": output.scores}

    @override
    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, Any]]:
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "generation_rows"):
            raise UserError(
                f"predict needs a data module with generation_rows, such as SFTDataModule; got {datamodule}."
            )
        if not self._predict_rows:
            self._predict_rows = {row.index: row for row in datamodule.generation_rows("predict", None)}
        rows = [self._predict_rows[i] for i in batch["row"].tolist() if i in self._predict_rows]
        answers = generate(
            self.scorer.causal_lm, self.tokenizer, [r.prompt_ids for r in rows], max_new_tokens=self.max_new_tokens
        )
        return [
            {
                "index": row.index,
                "source": datamodule.source_names[row.source],
                "prompt": row.prompt_text,
                "completion": answer,
                "reference": row.reference,
                "score": datamodule.score(row, answer),
            }
            for row, answer in zip(rows, answers, strict=True)
        ]

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_averages("val")

    @override
    def on_test_epoch_end(self) -> None:
        self._log_averages("test")

    def _log_averages(self, stage: str) -> None:
        values = {f"{stage}/{k}": v.to(torch.float32) for k, v in self.averages.compute().items()}
        self.averages.reset()
        for key, value in values.items():
            self.log(key, value, prog_bar=key.endswith("/nll"))

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        _check_length(self.scorer.causal_lm, getattr(self.trainer, "datamodule", None))
        if self._packed and self.strategy_adapter.callable_inside:
            with self.trainer.precision_plugin.forward_context():
                check_documents_apart(self.scorer)

    @override
    def on_validation_start(self) -> None:
        self.averages.reset()  # an interrupted run leaves half a set behind

    @override
    def on_test_start(self) -> None:
        self.averages.reset()


def _check_length(model: PreTrainedModel, datamodule: Any) -> None:
    """Raise if a row is longer than a model with learned positions has, warn if longer than it was trained on."""
    limit = position_limit(model)
    reports = getattr(datamodule, "report", {})
    longest = max((int(report.lengths.max()) for report in reports.values() if len(report.lengths)), default=0)
    if limit is None or longest <= limit:
        return
    message = (
        f"The longest row has {longest} tokens, but {type(model).__name__} has {limit} positions. Set data.max_length "
        f"to {limit} or less, and data.truncation to what shall become of longer rows."
    )
    if not hasattr(text_config(model), "rope_parameters"):
        raise UserError(message)
    rank_zero_warn(message)


def _is_plain(value: object) -> bool:
    """Return whether a setting can stand in a checkpoint as data."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, str | int | float | bool)
