"""The same rows under any split of an optimizer step give the same weights, through the real command line."""

import json
from pathlib import Path

import pytest
import torch

from tests.running import run, run_folder, run_ranks, toy_arguments, write_rows

ROWS = 8
#: (micro-batch, accumulation, ranks, further settings)
SPLITS = {
    "4x2": (4, 2, 1, {}),
    "2x4": (2, 4, 1, {}),
    "1x8": (1, 8, 1, {}),
    "3x3, short last micro-batch": (3, 3, 1, {}),
    "8x1, gradient checkpointing": (8, 1, 1, {"model__gradient_checkpointing": True}),
    "8x1, reference head": (8, 1, 1, {"model__head": "reference"}),
    "4x1 on 2 ranks": (4, 1, 2, {}),
    "2x2 on 2 ranks": (2, 2, 2, {}),
    "1x4 on 2 ranks": (1, 4, 2, {}),
}
OPTIMIZERS = {
    "sgd": {"model__optimizer": "torch.optim.SGD", "model__optimizer__lr": 0.5},
    "adamw": {"model__optimizer": "torch.optim.AdamW", "model__optimizer__lr": 1e-3},
}


def trained_weights(
    name: str, model: Path, rows: Path, batch: int, accumulate: int, ranks: int, **settings: object
) -> dict[str, torch.Tensor]:
    """Weights after two epochs of one optimizer step each."""
    arguments = {
        "model__dtype": "float64",
        "model__lr_scheduler": "constant",
        "data__batch_size": batch,
        "data__val_split": None,
        "trainer__accumulate_grad_batches": accumulate,
        "trainer__max_epochs": 2,
        "trainer__max_steps": -1,
        "trainer__gradient_clip_val": 0.1,
        "trainer__default_root_dir": name.replace(" ", "_"),
        **settings,
    }
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": {"filename": "last"}}]
    fit = run if ranks == 1 else run_ranks
    fit("fit", [*toy_arguments(model, rows, **arguments), f"--trainer.callbacks={json.dumps(callbacks)}"])
    folder = run_folder(Path(arguments["trainer__default_root_dir"]) / "lightning_logs")
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    return checkpoint["state_dict"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", ROWS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_split_gives_the_same_weights(optimizer: str, toy_folder: Path, rows: Path) -> None:
    settings = OPTIMIZERS[optimizer]
    whole = trained_weights("whole", toy_folder, rows, 8, 1, 1, **settings)
    splits = SPLITS if optimizer == "sgd" else {k: SPLITS[k] for k in ("2x4", "2x2 on 2 ranks")}
    for name, (batch, accumulate, ranks, further) in splits.items():
        split = trained_weights(name, toy_folder, rows, batch, accumulate, ranks, **settings, **further)
        assert whole.keys() == split.keys()
        for key, value in whole.items():
            assert (split[key] - value).norm() <= 1e-12 * value.norm(), f"{name}: {key}"
