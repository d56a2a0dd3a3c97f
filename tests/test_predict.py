"""Predict in a module that has neither a language model nor a training step of ours."""

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_sft.errors import UserError
from lightning_sft.evaluation import EvaluatedModule
from lightning_sft.head import HeadOutput


class Known(EvaluatedModule):
    """Answers each prompt with its ids."""

    def forward(self, batch: dict[str, torch.Tensor]) -> HeadOutput:
        raise AssertionError("predict scores nothing")

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        return [f"to {list(prompt)}" for prompt in prompts]


class Prompts:
    """The part of a data module that predict needs; row 1 is plain text, which has no prompt."""

    source_names = ("first", "second")

    def __init__(self) -> None:
        self.asked: list[tuple[str, int | None]] = []

    def generation_rows(self, stage: str, limit: int | None) -> list[SimpleNamespace]:
        self.asked.append((stage, limit))
        return [
            SimpleNamespace(index=i, source=i % 2, prompt_ids=[i, i], prompt_text=f"say {i}", reference=str(i))
            for i in (0, 2, 3)
        ]

    def score(self, row: SimpleNamespace, answer: str) -> float:
        return float(answer == f"to [{row.index}, {row.index}]")


def predicting(datamodule: object) -> Known:
    module = Known()
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.trainer.datamodule = datamodule
    module.on_predict_start()
    return module


def test_predict_answers_the_rows_that_have_a_prompt() -> None:
    prompts = Prompts()
    module = predicting(prompts)
    answers = [
        *module.predict_step({"row": torch.tensor([0, 1])}, 0),
        *module.predict_step({"row": torch.tensor([3])}, 1),
    ]
    assert answers == [
        {
            "index": i,
            "source": source,
            "prompt": f"say {i}",
            "completion": f"to [{i}, {i}]",
            "reference": str(i),
            "score": 1.0,
        }
        for i, source in ((0, "first"), (3, "second"))
    ]
    assert prompts.asked == [("predict", None)], "the rows are read once"


def test_predict_without_prompts_says_what_it_needs() -> None:
    with pytest.raises(UserError, match="generation_rows, such as SFTDataModule; got None"):
        predicting(None).predict_step({"row": torch.tensor([0])}, 0)
