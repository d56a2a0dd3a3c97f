"""The loops that train nothing: token averages over a validation or test set, and answers to the prompts of predict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.head import HeadOutput
from lightning_sft.metrics import TokenAverages

Batch = dict[str, Tensor]


class EvaluatedModule(LightningModule, ABC):
    """A module that is validated, tested and asked for answers; it knows nothing of training or of the model.

    A subclass gives `forward`, which scores the labels of a batch, and `answer`, which continues prompts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.averages = TokenAverages()
        self._predict_rows: dict[int, Any] = {}

    @abstractmethod
    @override
    def forward(self, batch: Batch) -> HeadOutput:
        """Score the labels of a batch."""

    @abstractmethod
    def answer(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """Return the model's answer to each prompt, given as token ids."""

    @override
    def on_validation_start(self) -> None:
        self.averages.reset()  # an interrupted run leaves half a set behind

    @override
    def on_test_start(self) -> None:
        self.averages.reset()

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch)

    @override
    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch)

    def _evaluate(self, batch: Batch) -> dict[str, Any]:
        output: HeadOutput = self(batch)
        self.averages.update(output.losses, output.scores)
        return {"losses": output.losses, "scores": output.scores}

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
