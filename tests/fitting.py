"""Hand-made batches and a quiet trainer: what the tests of training share."""

import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

LENGTHS = (5, 12, 9, 3, 20, 7)


def batches(rows: int = 6, size: int = 2, vocabulary: int = 259) -> list[dict[str, torch.Tensor]]:
    """Padded batches of rows of very different lengths, the first third of each without supervision."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for start in range(0, rows, size):
        lengths = [LENGTHS[i % len(LENGTHS)] for i in range(start, start + size)]
        ids = torch.zeros(size, max(lengths), dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, n in enumerate(lengths):
            ids[i, :n] = torch.randint(3, vocabulary, (n,), generator=generator)
            mask[i, :n] = 1
            labels[i, n // 3 : n] = ids[i, n // 3 : n]
        index = torch.arange(start, start + size)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels, "row": index, "source": index * 0})
    return made


def trainer(**settings: object) -> Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    return Trainer(**{"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1, **quiet, **settings})


def loader(rows: list[dict[str, torch.Tensor]]) -> DataLoader:
    return DataLoader(rows, batch_size=None, shuffle=False)


class KeepLosses(Callback):
    """What Lightning hands to callbacks as ``outputs["loss"]``."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(float(outputs["loss"]))
