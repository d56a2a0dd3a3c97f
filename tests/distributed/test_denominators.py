"""Weighted rows under each denominator: two ranks have the gradients of one device."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from lightning_sft.objectives.base import Denominator
from tests.distributed.ranks import two_ranks
from tests.distributed.test_reference import FSDP2
from tests.running import run, toy_arguments
from tests.toys import save_toy, toy_tokenizer

THRESHOLD = {"class_path": "Thresholded", "init_args": {"base": {"class_path": "PowerFamily"}, "threshold": 0.0038}}


def write_weighted(place: Path) -> None:
    """Rows of very different lengths and weights, and a file of one context of the first of them."""
    weights = (2.0, 0.5, -1.0, 3.0, 1.0, 0.25, 0.0, 4.0)
    rows = [{"prompt": f"say {i}", "completion": "word " * (1 + i * i % 5) + str(i)} for i in range(len(weights))]
    lines = [json.dumps({**row, "loss_weight": w}) for row, w in zip(rows, weights, strict=True) if w]
    (place / "rows.jsonl").write_text("\n".join(lines) + "\n")
    ids = toy_tokenizer().apply_chat_template(
        [{"role": "user", "content": "say 0"}, {"role": "assistant", "content": "word 0"}], return_dict=False
    )
    (place / "silent.jsonl").write_text(json.dumps({"context_ids": ids[:-5], "correct_id": ids[-5]}))


def line(place: Path, name: str, denominator: str, **further: Any) -> list[str]:
    keep = {"class_path": "tests.invariants.kept.KeepTrajectory", "init_args": {"path": str(place / f"{name}.pt")}}
    arguments = {
        "model__denominator": denominator,
        "model__objective": json.dumps(THRESHOLD),
        "model__dtype": "float64",
        "model__optimizer": "torch.optim.SGD",
        "model__optimizer__lr": "0.1",
        "model__lr_scheduler": "constant",
        "data__loss_weights__contexts": json.dumps({str(place / "silent.jsonl"): 5.0}),
        "data__cache_dir": str(place / "cache"),
        "data__val_split": None,
        "trainer__max_steps": 2,
        "trainer__max_epochs": 2,
        "trainer__enable_checkpointing": "false",
        "trainer__logger": "false",
        "trainer__callbacks": json.dumps([keep]),
        **further,
    }
    return ["fit", *toy_arguments(place / "model", place / "rows.jsonl", **arguments)]


@pytest.mark.ranks
@pytest.mark.filterwarnings("ignore:.*negative weight:UserWarning")
@pytest.mark.parametrize("strategy", ["ddp", FSDP2], ids=["ddp", "fsdp2"])
def test_two_ranks_have_the_gradients_of_one_device(tmp_path: Path, strategy: str) -> None:
    save_toy(tmp_path / "model", "gpt_neox")
    write_weighted(tmp_path)
    kinds = get_args(Denominator)
    for kind in kinds:
        verb, *words = line(tmp_path, f"one-{kind}", kind, data__batch_size=8, trainer__devices=1)
        run(verb, words)
    split = {"data__batch_size": 2, "trainer__accumulate_grad_batches": 2, "trainer__devices": 2}
    lines = [line(tmp_path, f"two-{kind}", kind, trainer__strategy=strategy, **split) for kind in kinds]
    two_ranks("work:command_lines", tmp_path, lines=lines)
    firsts = []
    for kind in kinds:
        one, two = (torch.load(tmp_path / f"{name}-{kind}.pt", weights_only=True) for name in ("one", "two"))
        assert len(one["gradients"]) == len(two["gradients"]) == 2
        for mine, theirs in zip(one["gradients"], two["gradients"], strict=True):
            for name, gradient in mine.items():
                torch.testing.assert_close(theirs[name], gradient, rtol=1e-9, atol=1e-12, msg=f"{kind}: {name}")
        firsts.append(one["gradients"][0])
    norms = {f"{sum(float(g.square().sum()) for g in first.values()):.6g}" for first in firsts}
    assert len(norms) == len(kinds)  # each divides by another number
