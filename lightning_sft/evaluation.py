"""The loops that train nothing: token averages over a validation or test set, and answers to the prompts of predict."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from typing_extensions import override

from lightning_sft._lightning import callbacks_of
from lightning_sft.data.named import EvaluationSet, read_now
from lightning_sft.errors import UserError
from lightning_sft.head import HeadOutput
from lightning_sft.metrics.answers import answer_spans, read_answers
from lightning_sft.metrics.sets import SetAverages
from lightning_sft.models.access import find_causal_lm, find_tokenizer
from lightning_sft.models.generation import end_tokens, generate

Batch = dict[str, Tensor]


class EvaluatedModule(LightningModule, ABC):
    """A module around one Hugging Face causal LM that is validated, tested and asked for answers, but not trained.

    A subclass gives `forward`, which scores the labels of a batch, holds the model and has a ``tokenizer``.

    Attributes:
        averages: sums of the validation or test under way.
        pass_at_k: further k of ``val/pass_at_<k>``.
        validations: complete validations of the fit so far.
        unread: named sets that the validation or test under way, or the last one, does not read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.averages = SetAverages()
        self.pass_at_k: tuple[int, ...] = ()
        self.max_new_tokens = 256
        self.validations = 0  # complete ones of the fit, the one under way not counted
        self._sets: list[EvaluationSet] = []
        self.unread: list[EvaluationSet] = []
        self._waiting: list[tuple[EarlyStopping, bool]] = []  # whose check of finite values is put off
        self._ends: list[int] = []
        self._predict_rows: dict[int, Any] = {}

    @abstractmethod
    @override
    def forward(self, batch: Batch) -> HeadOutput:
        """Score the labels of a batch."""

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return the model's greedy answer to each prompt, given as token ids; see `generate`."""
        model, tokenizer = find_causal_lm(self), find_tokenizer(self)
        return generate(model, tokenizer, prompts, max_new_tokens=self.max_new_tokens)

    @override
    def on_validation_start(self) -> None:
        self._begin("val")

    @override
    def on_test_start(self) -> None:
        self._begin("test")

    def _begin(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        self._sets = list(getattr(datamodule, "named_sets", {}).get(stage, []))
        self.unread = [s for s, read in zip(self._sets, read_now(self._sets, self.trainer), strict=True) if not read]
        which = {source: i for i, s in enumerate(self._sets) for source in s.sources}
        sources = [which.get(source, 0) for source in range(max(which, default=-1) + 1)]
        pooled = [i for i, s in enumerate(self._sets) if s.every == 1] or None
        self.averages = SetAverages(sources, pooled, self.pass_at_k).to(self.device)
        self._ends = end_tokens(find_causal_lm(self), find_tokenizer(self))

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> dict[str, Any]:
        output: HeadOutput = self(batch)
        answers = read_answers(output.scores, answer_spans(batch["labels"], self._ends))
        self.averages.update(output.losses, output.scores, answers)
        return {"losses": output.losses, "scores": output.scores}

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_averages("val")
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.validations += 1
            self._let_monitors_wait()

    def _let_monitors_wait(self) -> None:
        """Keep callbacks that monitor a set which was not read from taking its last value, or none, for news."""
        for stopping, checks in self._waiting:
            stopping.check_finite = checks
        self._waiting = []
        keys = tuple(f"val/{s.name}/" for s in self.unread)
        for callback in callbacks_of(self.trainer):
            if not isinstance(callback, EarlyStopping | ModelCheckpoint) or not str(callback.monitor).startswith(keys):
                continue
            known = self.trainer.callback_metrics.get(str(callback.monitor), torch.tensor(math.nan)).isfinite()
            if not known:  # or Lightning raises; a checkpoint under it is replaced by the first that is read
                self.trainer.callback_metrics[str(callback.monitor)] = torch.tensor(math.nan)
            if isinstance(callback, EarlyStopping):
                callback.wait_count -= 1  # it will count one more reading without an improvement
                if not known:
                    self._waiting.append((callback, callback.check_finite))
                    callback.check_finite = False

    @override
    def on_test_epoch_end(self) -> None:
        self._log_averages("test")

    def _log_averages(self, stage: str) -> None:
        pooled, single = self.averages.compute()
        self.averages.reset()
        values = {f"{stage}/{key}": value for key, value in pooled.items()}
        for s, averages in zip(self._sets, single, strict=False):
            values |= {f"{stage}/{s.name}/{key}": value for key, value in averages.items()}
        for key, value in values.items():
            self.log(key, value.to(torch.float32), prog_bar=key == f"{stage}/nll")

    @override
    def on_predict_start(self) -> None:
        self._predict_rows = {}

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
        answers = self.answer([row.prompt_ids for row in rows])
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
