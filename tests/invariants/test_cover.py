"""Runs of every strategy, order, layout, head, accumulation and resume: each step's loss and norm are one device's."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from lightning_sft.cli.entry import main
from lightning_sft.data.batches.settings import BatchSettings
from lightning_sft.errors import UserError
from tests.distributed.ranks import some_ranks
from tests.invariants.cover import Case, pairs_of, pairwise
from tests.lazy import Lazy
from tests.running import run_folder, scalars, toy_arguments

FACTORS = {
    "strategy": ("single", "ddp", "fsdp2"),
    "order": ("shuffled", "grouped", "packed", "sequential"),
    "layout": ("flat", "padded"),
    "head": ("fused", "reference"),
    "accumulation": ("1", "2", "4"),
    "resume": ("no", "on as many ranks", "on other ranks"),
}
REFUSED = frozenset({("order", "packed"), ("layout", "padded")})
CASES = pairwise(FACTORS, [REFUSED])
MOST, SHOWN = 24, 6  # cases; those that are no slow tests
ROWS, TOGETHER = 28, 8  # a step has 8 rows or packs, the last one of an epoch fewer
STOP, STEPS = 2, 6  # the first part ends inside the first epoch, the second one inside a later one
KEYS = ("train/loss", "train/grad_norm")


def ranks_of(strategy: str) -> int:
    return 1 if strategy == "single" else 2


def strategy_setting(strategy: str, ranks: int) -> str:
    if strategy != "fsdp2":
        return "ddp" if ranks == 2 else "auto"
    sizes = {"data_parallel_size": ranks, "tensor_parallel_size": 1, "save_distributed_checkpoint": True}
    return json.dumps({"class_path": "ModelParallelStrategy", "init_args": sizes})


def line(case: Case, ranks: int, place: Path, root: Path, steps: int) -> list[str]:
    """A fit up to a step, which goes on where an earlier part stopped."""
    accumulate = int(case["accumulation"])
    arguments: dict[str, Any] = {
        "model__dtype": "float64",
        "model__head": case["head"],
        "model__optimizer": "torch.optim.AdamW",
        "model__optimizer__lr": "1e-2",
        "model__lr_scheduler": "constant",
        "data__order": case["order"],
        "data__layout": case["layout"],
        "data__max_length": 80,
        "data__truncation": "error",
        "data__val_split": None,
        "data__batch_size": TOGETHER // accumulate // ranks,
        "data__cache_dir": "false",
        "trainer__strategy": strategy_setting(case["strategy"], ranks),
        "trainer__devices": ranks,
        "trainer__accumulate_grad_batches": accumulate,
        "trainer__gradient_clip_val": 0.1,
        "trainer__max_steps": steps,
        "trainer__max_epochs": -1,
        "trainer__default_root_dir": root,
    }
    again = ["--ckpt_path=last"] if (root / "lightning_logs").exists() else []
    return ["fit", *toy_arguments(place / "toy", place / "rows.jsonl", **arguments), *again]


def run_case(case: Case, place: Path, root: Path) -> None:
    """Run it as a user does: one command, or one that stops and another that goes on."""
    ranks = ranks_of(case["strategy"])
    parts = {"no": [(ranks, STEPS)], "on as many ranks": [(ranks, STOP), (ranks, STEPS)]}
    for count, steps in parts.get(case["resume"], [(ranks, STOP), (3 - ranks, STEPS)]):
        command = line(case, count, place, root, steps)
        if count == 1 and case["strategy"] != "fsdp2":
            main(command)
        else:
            some_ranks(count, "work:command_lines", root, lines=[command])


def readings(root: Path) -> dict[str, list[tuple[int, float]]]:
    found = scalars(run_folder(root / "lightning_logs"))
    return {key: found[key] for key in KEYS}


@pytest.fixture(scope="module")
def one_device(place: Path) -> Lazy[dict[str, list[tuple[int, float]]]]:
    """Order -> each step on one device, the plainest way: padded, by the model's own logits, at once, uninterrupted.

    Rows of similar length are drawn for each micro-batch, so that order has a name with the accumulation behind it.
    """

    def train(name: str) -> dict[str, list[tuple[int, float]]]:
        order, _, accumulation = name.partition(" ")
        layout = "flat" if order == "packed" else "padded"
        plain = {"strategy": "single", "layout": layout, "head": "reference", "resume": "no"}
        root = place / name.replace(" ", "_")
        root.mkdir()
        run_case({**plain, "order": order, "accumulation": accumulation or "1"}, place, root)
        return readings(root)

    return Lazy(train)


def test_every_pair_of_values_meets_in_few_cases() -> None:
    asked = {
        frozenset({(one, a), (other, b)})
        for one, other in itertools.combinations(FACTORS, 2)
        for a, b in itertools.product(FACTORS[one], FACTORS[other])
    }
    assert set().union(*map(pairs_of, CASES)) == asked - {REFUSED}
    with pytest.raises(UserError, match=r"order is packed with data\.layout: padded"):
        BatchSettings("packed", "padded")
    assert len(CASES) <= MOST
    for factor, values in FACTORS.items():
        assert {case[factor] for case in CASES[:SHOWN]} == set(values)


def marks(number: int, case: Case) -> list[pytest.MarkDecorator]:
    starts_ranks = case["strategy"] != "single" or case["resume"] == "on other ranks"
    return [pytest.mark.ranks] * starts_ranks + [pytest.mark.slow] * (number >= SHOWN)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=", ".join(c.values()), marks=marks(i, c)) for i, c in enumerate(CASES)],
)
def test_each_step_is_one_devices(
    case: Case, place: Path, one_device: Lazy[dict[str, list[tuple[int, float]]]], tmp_path: Path
) -> None:
    run_case(case, place, tmp_path)
    grouped = case["order"] == "grouped"
    expected = one_device[f"grouped {case['accumulation']}" if grouped else case["order"]]
    got = readings(tmp_path)
    for key in KEYS:
        assert [step for step, _ in expected[key]] == list(range(1, STEPS + 1))
        assert len({value for _, value in expected[key]}) == STEPS
        assert got[key] == [(step, pytest.approx(value, rel=1e-5)) for step, value in expected[key]], key
