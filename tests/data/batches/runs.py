"""Runs that write down which rows they see, and lengths like those of real rows."""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_sft.data import SFTDataModule
from tests.data.helpers import write_jsonl
from tests.toys import toy_tokenizer

ROWS = 23


class Recorder(LightningModule):
    """Writes down which rows each step sees, one file a rank."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.tokenizer = toy_tokenizer()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        rows = " ".join(str(row) for row in batch["row"].tolist())
        with (self.folder / f"rank{self.global_rank}.txt").open("a") as file:
            file.write(f"{self.current_epoch} {batch_idx}: {rows}\n")
        return self.weight + torch.rand(()) * 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ValidatingRecorder(Recorder):
    """Writes down the validation rows too."""

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        rows = " ".join(str(row) for row in batch["row"].tolist())
        with (self.folder / f"val{self.global_rank}.txt").open("a") as file:
            file.write(f"{rows}\n")


def data_module(folder: Path, **options: object) -> SFTDataModule:
    path = folder / "rows.jsonl"
    if not path.exists():
        write_jsonl(path, [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(ROWS)])
    return SFTDataModule(**{"train": str(path), "batch_size": 3, **options})


def fit(
    folder: Path,
    out: str,
    epochs: int = 3,
    steps: int = -1,
    resume: Path | None = None,
    data: dict | None = None,
    recorder: type[Recorder] | None = None,
    **trainer: object,
) -> list[str]:
    """Train a recorder; returns what rank 0 saw, a line a step."""
    record = folder / out
    record.mkdir()
    module = (recorder or (ValidatingRecorder if "val" in (data or {}) else Recorder))(record)
    Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        max_steps=steps,
        logger=False,
        callbacks=[
            ModelCheckpoint(record, "{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(record, "epoch-{epoch}", save_on_train_epoch_end=True, save_top_k=-1),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"devices": 1, **trainer},
    ).fit(module, data_module(folder, **(data or {})), ckpt_path=resume, weights_only=True if resume else None)
    return (record / "rank0.txt").read_text().splitlines()


def like_gsm8k(count: int) -> np.ndarray:
    """Lengths spread like those of GSM8K under SmolLM2's tokenizer and template: mean 222, 90 to 570, skewed."""
    lengths = np.random.default_rng(0).lognormal(5.37, 0.28, count)
    return np.clip(lengths, 90, 570).astype(np.int64)
