"""A reference that is another checkpoint: sharded or copied as the model is, it gives the steps of one device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import two_ranks
from tests.running import run, toy_arguments, write_rows
from tests.toys import save_toy

FSDP2 = json.dumps(
    {"class_path": "ModelParallelStrategy", "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1}}
)


def line(place: Path, name: str, **further: Any) -> list[str]:
    keep = {"class_path": "tests.invariants.kept.KeepTrajectory", "init_args": {"path": str(place / f"{name}.pt")}}
    arguments = {
        "model__dtype": "float64",
        "model__reference_dtype": "float64",
        "model__optimizer": "torch.optim.SGD",
        "model__optimizer__lr": "0.5",
        "model__lr_scheduler": "constant",
        "data__val_split": None,
        "trainer__max_epochs": 3,
        "trainer__max_steps": -1,
        "trainer__enable_checkpointing": "false",
        "trainer__logger": "false",
        "trainer__callbacks": json.dumps([keep]),
        **further,
    }
    return ["fit", *toy_arguments(place / "student", place / "rows.jsonl", **arguments)]


def taught(place: Path) -> dict[str, dict[str, str]]:
    """Settings of objectives that compare with a teacher, by strategy and name; snapshots need whole models."""
    teacher = {"model__reference": str(place / "teacher")}
    given: dict[str, dict[str, Any]] = {
        "Distill": {"temperature": 2.0},
        "Rho1": {"fraction": 0.5},
        "TailSFT": {"fraction": 0.4},
        "PSFT": {"every_n_steps": 2, "clip": 0.05},
    }
    return {
        name: {
            "model__objective": json.dumps({"class_path": name, "init_args": arguments}),
            **({} if name == "PSFT" else teacher),
        }
        for name, arguments in given.items()
    }


@pytest.mark.ranks
@pytest.mark.parametrize("strategy", ["ddp", FSDP2], ids=["ddp", "fsdp2"])
def test_two_ranks_make_the_steps_of_one_device(tmp_path: Path, strategy: str) -> None:
    save_toy(tmp_path / "student", "gpt_neox")
    save_toy(tmp_path / "teacher", "gpt_neox", seed=1, hidden_size=48)
    write_rows(tmp_path / "rows.jsonl", 8)
    cases = {name: how for name, how in taught(tmp_path).items() if strategy == "ddp" or name in ("Distill", "TailSFT")}
    for name, how in cases.items():
        verb, *words = line(tmp_path, f"one-{name}", data__batch_size=8, trainer__devices=1, **how)
        run(verb, words)
    spread = {"data__batch_size": 4, "trainer__devices": 2, "trainer__strategy": strategy}
    two_ranks(
        "work:command_lines", tmp_path, lines=[line(tmp_path, f"two-{n}", **spread, **how) for n, how in cases.items()]
    )
    for name in cases:
        compare(*(torch.load(tmp_path / f"{ranks}-{name}.pt", weights_only=True) for ranks in ("one", "two")))


def compare(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert len(one["gradients"]) == 3
    assert one["weights"].keys() == two["weights"].keys()
    for first, second in zip(one["gradients"], two["gradients"], strict=True):
        assert not [name for name in first if "reference" in name]
        for name, gradient in first.items():
            torch.testing.assert_close(second[name], gradient, rtol=1e-9, atol=1e-12)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-9, atol=1e-12)
