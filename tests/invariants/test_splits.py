"""The same rows under any split of an optimizer step give one trajectory, through the real command line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import two_ranks
from tests.lazy import Lazy
from tests.running import run, toy_arguments

ROWS = 8
CHECKPOINTING = {"model__gradient_checkpointing": "true"}
PACKED = {"data__order": "packed", "data__max_length": "128"}
PADDED = {"data__layout": "padded"}  # the others are flat


def fsdp2(data: int = 2) -> dict[str, str]:
    sizes = {"data_parallel_size": data, "tensor_parallel_size": 2 // data}
    return {"trainer__strategy": json.dumps({"class_path": "ModelParallelStrategy", "init_args": sizes})}


DDP = {"trainer__strategy": "ddp"}
SPLIT_LAYERS = fsdp2(1)
FSDP2 = fsdp2(2)
#: (micro-batch, accumulation, further settings); with a strategy on two ranks, else on one device
SPLITS: dict[str, tuple[int, int, dict[str, str]]] = {
    "8x1": (8, 1, {}),
    "4x2": (4, 2, {}),
    "2x4": (2, 4, {}),
    "1x8": (1, 8, {}),
    "3x3, short last micro-batch": (3, 3, {}),
    "4x2, gradient checkpointing": (4, 2, CHECKPOINTING),
    "8x1, model's own logits": (8, 1, {"model__head": "reference"}),
    "ddp 4x1": (4, 1, DDP),
    "ddp 2x2, gradient checkpointing": (2, 2, {**DDP, **CHECKPOINTING}),
    "ddp 1x4": (1, 4, DDP),
    "fsdp2 4x1": (4, 1, FSDP2),
    "fsdp2 2x2, gradient checkpointing": (2, 2, {**FSDP2, **CHECKPOINTING}),
    "fsdp2 1x4": (1, 4, FSDP2),
    "8x1, padded": (8, 1, PADDED),
    "2x4, padded, gradient checkpointing": (2, 4, {**PADDED, **CHECKPOINTING}),
    "ddp 2x2, padded": (2, 2, {**DDP, **PADDED}),
    "fsdp2 4x1, padded": (4, 1, {**FSDP2, **PADDED}),
    "8x1, packed": (8, 1, PACKED),
    "2x4, packed, masks": (2, 4, {**PACKED, "model__attn_implementation": "sdpa"}),
    "ddp 2x2, packed, gradient checkpointing": (2, 2, {**DDP, **PACKED, **CHECKPOINTING}),
    "fsdp2 4x1, packed": (4, 1, {**FSDP2, **PACKED}),
    "split layers 4x2, packed": (4, 2, {**SPLIT_LAYERS, **PACKED}),
    "split layers 4x2": (4, 2, SPLIT_LAYERS),
    "split layers 1x8, gradient checkpointing": (1, 8, {**SPLIT_LAYERS, **CHECKPOINTING}),
}
#: further runs of some splits: (settings of the run, tolerance of gradients and weights, splits)
FLOAT64, FLOAT32 = {"model__dtype": "float64"}, {"model__dtype": "float32"}
SGD = {"model__optimizer": "torch.optim.SGD", "model__optimizer__lr": "0.5"}
ADAMW = {"model__optimizer": "torch.optim.AdamW", "model__optimizer__lr": "1e-3"}
FEW = ("8x1", "8x1, padded", "2x4", "ddp 2x2, gradient checkpointing", "fsdp2 2x2, gradient checkpointing")
RUNS: dict[str, tuple[dict[str, str], float, tuple[str, ...]]] = {
    "sgd, float64": ({**SGD, **FLOAT64}, 1e-12, tuple(SPLITS)),
    "sgd, float32": ({**SGD, **FLOAT32}, 1e-5, (*FEW, "4x2", "1x8", "ddp 1x4", "split layers 4x2")),
    "adamw, float64": ({**ADAMW, **FLOAT64}, 1e-12, FEW),
}


def line(name: str, kind: str, model: Path, rows: Path, place: Path) -> list[str]:
    """The command of one run: two epochs of one optimizer step each."""
    batch, accumulate, further = SPLITS[name]
    keep = {"class_path": "tests.invariants.kept.KeepTrajectory", "init_args": {"path": str(file(name, kind, place))}}
    arguments: dict[str, Any] = {
        "model__lr_scheduler": "constant",
        "data__batch_size": batch,
        "data__val_split": None,
        "trainer__accumulate_grad_batches": accumulate,
        "trainer__max_epochs": 2,
        "trainer__max_steps": -1,
        "trainer__gradient_clip_val": 0.1,
        "trainer__enable_checkpointing": "false",
        "trainer__logger": "false",
        "trainer__callbacks": json.dumps([keep]),
        "trainer__devices": 2 if "trainer__strategy" in further else 1,
        **RUNS[kind][0],
        **further,
    }
    return ["fit", *toy_arguments(model, rows, **arguments)]


def file(name: str, kind: str, place: Path) -> Path:
    return place / f"{kind} {name}.pt".replace(" ", "_")


@pytest.fixture(scope="module")
def whole_steps(place: Path) -> Lazy[dict[str, Any]]:
    """Run -> what one device keeps that takes each step at once."""

    def train(kind: str) -> dict[str, Any]:
        run_all(["8x1"], kind, place)
        return torch.load(file("8x1", kind, place), weights_only=True)

    return Lazy(train)


def run_all(names: list[str], kind: str, place: Path) -> None:
    lines = [line(name, kind, place / "toy", place / "rows.jsonl", place) for name in names]
    if "trainer__strategy" in SPLITS[names[0]][2]:
        two_ranks("work:command_lines", place, lines=lines)
    else:
        for verb, *words in lines:
            run(verb, words)


def sharing(name: str) -> str:
    """How a split spreads over ranks."""
    return re.split(r" \dx", name)[0] if "trainer__strategy" in SPLITS[name][2] else "one device"


#: (run, how it spreads) -> its splits, which run in one go; the exact run is shown always
GROUPS = {
    (kind, how): [name for name in names if sharing(name) == how]
    for kind, (_, _, names) in RUNS.items()
    for how in dict.fromkeys(map(sharing, names))
}


def marks(kind: str, how: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.ranks] * (how != "one device") + [pytest.mark.slow] * (kind != "sgd, float64")


@pytest.mark.parametrize(("kind", "how"), [pytest.param(*group, marks=marks(*group)) for group in GROUPS])
def test_every_split_gives_one_trajectory(kind: str, how: str, place: Path, whole_steps: Lazy[dict[str, Any]]) -> None:
    tolerance, names = RUNS[kind][1], GROUPS[kind, how]
    expected = whole_steps[kind]
    assert len(expected["gradients"]) == 2
    run_all([name for name in names if name != "8x1"], kind, place)
    for name in names:
        got = torch.load(file(name, kind, place), weights_only=True)
        assert len(got["gradients"]) == 2, name
        pairs = [*zip(got["gradients"], expected["gradients"], strict=True), (got["weights"], expected["weights"])]
        for ours, theirs in pairs:
            assert ours.keys() == theirs.keys()
            assert sum(v.norm() for v in theirs.values()) > 0
            for key, value in theirs.items():
                assert (ours[key] - value).norm() <= tolerance * value.norm(), f"{name}: {key}"
