"""A fit in one go and the same fit in two parts, on the command line."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.running import run_folder, toy_arguments

STEPS = 6


def lora(dropout: float) -> str:
    """A small adapter, as a setting."""
    given = {"r": 4, "lora_dropout": dropout, "target_modules": "all-linear"}
    return json.dumps({"class_path": "peft.LoraConfig", "init_args": given})


def fit_arguments(model: Path, rows: Path, adapter: bool = False, dropout: float = 0.2, **given: Any) -> list[str]:
    """A fit with ``dropout``, AdamW, accumulation and clipping; ``strategy`` and others by their last name."""
    defaults: dict[str, Any] = {
        "model__config_overrides": json.dumps({"attention_dropout": dropout}),
        "model__optimizer": "torch.optim.AdamW",
        "model__optimizer__lr": 1e-2,
        "model__lr_scheduler": "constant",
        "data__batch_size": 2,
        "trainer__accumulate_grad_batches": 2,
        "trainer__gradient_clip_val": 0.5,
        "trainer__max_steps": STEPS,
    }
    lines = toy_arguments(model, rows, **{**defaults, **given})
    return ["fit", *lines, *([f"--model.adapter={lora(dropout)}"] if adapter else [])]


def fit_lines(
    model: Path, rows: Path, *, strategy: object, adapter: bool = False, root: str = ".", **given: Any
) -> list[list[str]]:
    """Command lines: one whole fit in ``root/whole``; in ``root/parts`` its first half, and the rest from there."""
    given |= {"trainer__strategy": strategy if isinstance(strategy, str) else json.dumps(strategy)}
    given = {"trainer__devices": 2, **given}
    whole = fit_arguments(model, rows, adapter, trainer__default_root_dir=f"{root}/whole", **given)
    half = {**given, "trainer__default_root_dir": f"{root}/parts", "trainer__max_steps": STEPS // 2}
    first = fit_arguments(model, rows, adapter, **half)
    rest = fit_arguments(model, rows, adapter, **{**half, "trainer__max_steps": STEPS})
    return [whole, first, [*rest, "--ckpt_path=last"]]


def last_path(root: Path) -> Path:
    """``last.ckpt`` of the newest run."""
    return run_folder(root / "lightning_logs") / "checkpoints" / "last.ckpt"


def last_checkpoint(root: Path) -> dict[str, Any]:
    """The last checkpoint, whether one file or a folder of shards."""
    path = last_path(root)
    if path.is_file():
        return torch.load(path, weights_only=True)
    joined = root / "joined.pt"
    dcp_to_torch_save(path, joined)
    return {**torch.load(path / "meta.pt", weights_only=True), **torch.load(joined, weights_only=True)}


def assert_equal(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Two checkpoints hold the same weights and optimizer states, to the last bit."""
    assert got["global_step"] == expected["global_step"] == STEPS
    for key in ("state_dict", "optimizer_states", "optimizer_0"):
        _same(got.get(key), expected.get(key), key)


def _same(got: Any, expected: Any, where: str) -> None:
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected), where
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key, value in expected.items():
            _same(got[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):  # FSDP2 brings tuples back as lists
        assert len(got) == len(expected), where
        for i, pair in enumerate(zip(got, expected, strict=True)):
            _same(*pair, f"{where}.{i}")
    else:
        assert got == expected, where


def fsdp2_strategy(sharded: bool) -> dict[str, object]:
    sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": sharded}
    return {"class_path": "ModelParallelStrategy", "init_args": sizes}
