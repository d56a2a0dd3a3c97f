"""GenerationMonitor: generated answers to held-out prompts, and their accuracy."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from lightning_sft._lightning import data_parallel_size_and_rank
from lightning_sft.errors import UserError
from lightning_sft.figures.loggers import log_text
from lightning_sft.metrics.wide import wide_device
from lightning_sft.models.generation import generate
from lightning_sft.models.instruments import model_to_read, tokenizer_to_use
from lightning_sft.probes.forward import within_shards

Stage = Literal["val", "test"]


class GenerationMonitor(Callback):
    """Answer held-out prompts on every validation and test; log samples as text and the task's accuracy.

    The accuracy (``val/task_accuracy``, ``test/task_accuracy``) is the mean score over the prompts whose source scores
    answers, exact over ranks. It needs a data module with ``generation_rows`` and ``score``, such as
    [`SFTDataModule`][lightning_sft.data.SFTDataModule]; with others this callback does nothing. Decoding is greedy and
    draws no random number.

    Args:
        samples: prompts whose answers are logged as text.
        limit: prompts to answer on validation where answers are scored; None is all of them. Only ``samples``
            prompts are answered where nothing is scored.
        test_limit: the same on test.
        max_new_tokens: longest answer.
        batch_size: prompts answered at once.
        model: the module that holds the language model; None looks for it in the LightningModule.
        tokenizer: the tokenizer; None looks for an attribute ``tokenizer`` of the LightningModule or its data module.

    Raises:
        UserError: a negative number.
    """

    def __init__(
        self,
        samples: int = 8,
        limit: int | None = 64,
        test_limit: int | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        model: nn.Module | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        for name, value in (("samples", samples), ("limit", limit), ("test_limit", test_limit)):
            if value is not None and value < 0:
                raise UserError(f"GenerationMonitor got {name}={value}. Allowed: 0 or more.")
        self.samples = samples
        self.limit = limit
        self.test_limit = test_limit
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self._model = model
        self._tokenizer = tokenizer

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module, "val", self.limit)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer, pl_module, "test", self.test_limit)

    def _read(self, trainer: Trainer, pl_module: LightningModule, stage: Stage, limit: int | None) -> None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        glance = trainer.sanity_checking and trainer.num_sanity_val_steps != math.inf
        if trainer.barebones or glance or not hasattr(datamodule, "generation_rows"):
            return
        rows = datamodule.generation_rows(stage, limit)
        if all(datamodule.score(row, "") is None for row in rows):
            rows = rows[: self.samples]
        if not rows:
            return
        if any(isinstance(m, FullyShardedDataParallel) for m in pl_module.modules()):
            rank_zero_warn(
                "GenerationMonitor answers nothing under FSDPStrategy (FSDP1), whose shards cannot be gathered around "
                "generation. Use configs/strategy/fsdp2.yaml for answers."
            )
            return
        count, rank = data_parallel_size_and_rank(trainer)
        mine = rows[rank::count]
        answers = self._answers(trainer, pl_module, rows, mine)
        scores = [datamodule.score(row, answer) for row, answer in zip(mine, answers, strict=False)]
        self._log_accuracy(trainer, pl_module, stage, [s for s in scores if s is not None])
        shown = list(zip(mine, answers, scores, strict=False))[: self.samples]
        if shown:
            log_text(trainer, f"{stage}/samples", _table(shown), trainer.global_step)

    def _answers(self, trainer: Trainer, pl_module: LightningModule, rows: list[Any], mine: list[Any]) -> list[str]:
        """Return this rank's answers, followed by fillers that give every rank the same number of forward passes."""
        fill = math.ceil(len(rows) / data_parallel_size_and_rank(trainer)[0]) - len(mine)
        prompts = [row.prompt_ids for row in (*mine, *rows[:fill])]
        model = model_to_read(pl_module, self._model)
        tokenizer = tokenizer_to_use(pl_module, self._tokenizer)
        answers: list[str] = []

        def answer() -> None:
            with trainer.precision_plugin.forward_context():
                answers.extend(
                    generate(
                        model,
                        tokenizer,
                        prompts,
                        max_new_tokens=self.max_new_tokens,
                        batch_size=self.batch_size,
                        synced_gpus=trainer.world_size > 1,
                    )
                )

        within_shards(pl_module if self._model is None else self._model, model, answer)
        return answers

    def _log_accuracy(self, trainer: Trainer, pl_module: LightningModule, stage: str, scores: list[float]) -> None:
        sums = torch.tensor([sum(scores), len(scores)], dtype=torch.float64, device=wide_device(pl_module.device))
        total, count = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        if count:
            pl_module.log(f"{stage}/task_accuracy", total / count, prog_bar=True, batch_size=1)


def _table(shown: list[tuple[Any, str, float | None]]) -> str:
    """Return a Markdown table of prompts, references and answers."""
    lines = ["| prompt | reference | answer | score |", "| --- | --- | --- | --- |"]
    for row, answer, score in shown:
        cells = (row.prompt_text, row.reference or "", answer, "" if score is None else f"{score:.2f}")
        lines.append("| " + " | ".join(_cell(c) for c in cells) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
