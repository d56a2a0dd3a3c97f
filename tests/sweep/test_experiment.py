"""The shipped experiment trains exactly the answers of the probes that it reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy

from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from lightning_sft.probes.files import load_probes
from lightning_sft.sweep.trial import TrialRunner
from tests.toys import toy_tokenizer

ROOT = Path(__file__).parents[2]


def test_every_row_trains_the_answer_of_a_probe_and_nothing_else() -> None:
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "experiment" / "critical_lr.yaml").read_text())
    search, monitor = (callback["init_args"] for callback in config["trainer"]["callbacks"])
    assert search["probes"] == monitor["probes"]
    assert search["steps"] == config["trainer"]["max_steps"] == 12
    probes = load_probes(ROOT / search["probes"])
    tokenizer = toy_tokenizer()
    tokenizer.chat_template = config["model"]["chat_template"]
    data = SFTDataModule(
        train=str(ROOT / config["data"]["train"]), tokenizer=tokenizer, batch_size=10, shuffle=config["data"]["shuffle"]
    )
    data.setup("fit")
    (batch,) = data.train_dataloader()
    rows = {
        (tokenizer.decode(ids[: int(at[0])]), tokenizer.decode(ids[at]))
        for ids, at in zip(batch["input_ids"], ((row != -100).nonzero()[:, 0] for row in batch["labels"]), strict=True)
    }
    assert rows == {(probe.context, f" {probe.correct}") for probe in probes}
    assert len(rows) == config["data"]["batch_size"] == 10
    assert torch.equal(batch["labels"][batch["labels"] != -100], batch["input_ids"][batch["labels"] != -100])


def test_a_strategy_whose_state_is_out_of_reach_is_refused() -> None:
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    elsewhere = type("Trainer", (Trainer,), {"strategy": strategy})
    trainer: Any = elsewhere.__new__(elsewhere)
    module: Any = None
    with pytest.raises(UserError, match="no sweep under DeepSpeed"), TrialRunner(trainer, module, 1):
        pass
