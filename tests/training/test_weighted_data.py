"""Fits on weighted rows: they resume to the last bit in every order and layout."""

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.data import LossWeights
from lightning_sft.objectives import Objective, TailSFT
from lightning_sft.objectives.base import Denominator
from tests.distributed.test_denominators import write_weighted
from tests.running import run, run_folder, toy_arguments, write_rows
from tests.toys import save_toy, toy_tokenizer

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


class Gradient(Callback):
    """The gradient of the first step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.scorer.named_parameters()
        self.found = self.found or {name: p.grad.clone() for name, p in named if p.grad is not None}


class SaveAt(Callback):
    """Write a checkpoint after so many steps, in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(
    place: Path,
    steps: int,
    resume: Path | None = None,
    callback: Callback | None = None,
    objective: Objective | None = None,
    denominator: Denominator = "weights",
    **data: Any,
) -> SFTModule:
    module = SFTModule(
        str(place / "model"),
        objective,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        lr_scheduler="constant",
        denominator=denominator,
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


LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {"layout": "padded", "order": "sequential"},
    "flat": {"layout": "flat", "order": "shuffled"},
    "packed": {"order": "packed", "max_length": 900},
}


@pytest.mark.parametrize("denominator", get_args(Denominator))
def test_every_layout_has_one_gradient(place: Path, denominator: Denominator) -> None:
    """Weighted rows, a context, and an objective that looks at whole rows and drops some of them."""
    found = {}
    for name, how in LAYOUTS.items():
        kept = Gradient()
        fit(place, 1, callback=kept, objective=TailSFT(0.3), denominator=denominator, **{"batch_size": 8, **how})
        found[name] = kept.found
    assert sum(float(g.abs().sum()) for g in found["padded"].values()) > 0
    for name in ("flat", "packed"):
        for parameter, gradient in found["padded"].items():
            torch.testing.assert_close(
                found[name][parameter], gradient, rtol=1e-9, atol=1e-12, msg=f"{name}: {parameter}"
            )


def test_a_fit_without_the_context_is_another_one(place: Path) -> None:
    weighted, plain = fit(place, 4), fit(place, 4, loss_weights=None)
    assert any(not torch.equal(p, plain.get_parameter(name)) for name, p in weighted.named_parameters())


@pytest.mark.parametrize("how", [{"order": "grouped"}, {"order": "packed", "max_length": 120}], ids=["rows", "packs"])
def test_what_the_monitor_of_silent_failures_wrote_is_found(place: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    """Its contexts are those of rows, whatever the batches, and a second fit weighs every one of them."""
    rows = write_rows(tmp_path / "rows.jsonl", 24)
    settings = {
        "model__optimizer__lr": "2e-4",  # few tokens overtake their competitor
        "trainer__max_steps": 6,
        "trainer__max_epochs": -1,
        "trainer__val_check_interval": 2,
        "trainer__check_val_every_n_epoch": "null",
        **{f"data__{key}": value for key, value in how.items()},
    }
    run("fit", toy_arguments(place / "model", rows, **settings))
    file = run_folder() / "silent.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    trained = [line for line in lines if line["set"] == "train"]
    assert trained
    data = SFTDataModule(
        str(rows),
        tokenizer=toy_tokenizer(),
        val_split=4,
        cache_dir=False,
        loss_weights=LossWeights(contexts={str(file): 4.0}),
        **how,
    )
    data.setup("fit")  # warns if one of them is not found
    assert data.report["train"].contexts == {str(file): [len(trained), len(trained), len(lines) - len(trained)]}
    heavy = {(i, at) for i in range(20) for at in np.flatnonzero(data.dataset("train")[i].weights == 4.0)}
    assert heavy >= {(line["row"], line["position"]) for line in trained}
