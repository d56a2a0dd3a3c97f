"""Fits on weighted rows: they resume to the last bit in every order and layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.data import LossWeights
from tests.distributed.test_denominators import write_weighted
from tests.toys import save_toy

SETTINGS = {"max_epochs": -1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*negative weight:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*num_workers|.*in the middle of an epoch|.*checkpoint directory:UserWarning"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("weighted")
    save_toy(place / "model", "gpt_neox")
    write_weighted(place)
    return place


class SaveAt(Callback):
    """Write a checkpoint after so many steps, in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(
    place: Path, steps: int, resume: Path | None = None, callback: Callback | None = None, **data: Any
) -> SFTModule:
    module = SFTModule(
        str(place / "model"),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        lr_scheduler="constant",
        denominator="weights",
        dtype="float64",
    )
    rules = LossWeights(contexts={str(place / "silent.jsonl"): 5.0})
    how = {"batch_size": 2, "cache_dir": str(place / "cache"), "loss_weights": rules, **data}
    trainer = Trainer(max_steps=steps, enable_model_summary=False, callbacks=callback, **SETTINGS)
    trainer.fit(module, datamodule=SFTDataModule(str(place / "rows.jsonl"), **how), ckpt_path=resume)
    return module


@pytest.mark.parametrize(
    "how",
    [{"layout": "padded"}, {"layout": "flat"}, {"order": "grouped"}, {"order": "packed", "max_length": 120}],
    ids=["padded", "flat", "grouped", "packed"],
)
def test_a_resumed_fit_continues_with_the_same_weights(place: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    whole = fit(place, 5, callback=SaveAt(2, tmp_path / "half.ckpt"), **how)
    continued = fit(place, 5, tmp_path / "half.ckpt", **how)
    assert all(torch.equal(p, continued.get_parameter(name)) for name, p in whole.named_parameters())
    assert whole.step_totals["weights"] == continued.step_totals["weights"] != whole.step_totals["supervised"]


def test_a_fit_without_the_context_is_another_one(place: Path) -> None:
    weighted, plain = fit(place, 4), fit(place, 4, loss_weights=None)
    assert any(not torch.equal(p, plain.get_parameter(name)) for name, p in weighted.named_parameters())
