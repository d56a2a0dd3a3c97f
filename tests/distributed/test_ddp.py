"""Exact gradients where two ranks differ, under DDP and FSDP2, and a resumed run under DDP."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.fits import assert_equal, fit_lines, last_checkpoint
from tests.distributed.ranks import two_ranks
from tests.distributed.work import gradients
from tests.running import write_rows

pytestmark = pytest.mark.ranks

#: micro-batches 0, 2, 4 go to rank 0 and 1, 3, 5 to rank 1
CASES: dict[str, dict[str, Any]] = {
    "one rank only masked rows": {"masked": [1, 3, 5]},
    "one rank only masked rows, adapter": {"masked": [1, 3, 5], "adapter": True},
    "one rank only masked rows, model's own logits": {"masked": [0, 2, 4], "head": "reference"},
    "fsdp2, one rank only masked rows": {"masked": [1, 3, 5], "strategy": "fsdp2"},
    "fsdp2, one rank only masked rows, adapter": {"masked": [0, 2, 4], "adapter": True, "strategy": "fsdp2"},
    "fsdp2, a whole step without supervision": {"masked": [2, 3], "strategy": "fsdp2"},
    "a whole step without supervision": {"masked": [2, 3]},
    "a short last window": {"masked": [1], "accumulate": 2},
}


def settings(case: str, model: Path) -> dict[str, Any]:
    return {"model": str(model), "dtype": "float64", **CASES[case]}


@pytest.fixture(scope="module")
def of_two_ranks(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases = {case: settings(case, toy_folder) for case in CASES}
    return two_ranks("work:all_gradients", tmp_path_factory.mktemp("ddp"), cases=cases)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_see_the_gradients_of_one(case: str, toy_folder: Path, of_two_ranks: list[dict[str, Any]]) -> None:
    given = settings(case, toy_folder)
    one = gradients(None, **{**given, "accumulate": 2 * given.get("accumulate", 1)})
    for results in of_two_ranks:
        rank = results[case]
        assert rank["skipped"] == one["skipped"] == ("a whole step without supervision" in case)
        assert len(rank["steps"]) == len(one["steps"])
        for got, expected in zip(rank["steps"], one["steps"], strict=True):
            assert got.keys() == expected.keys()
            assert sum(v.norm() for v in expected.values()) > 0
            for name, value in expected.items():
                assert (got[name] - value).norm() <= 1e-12 * value.norm() + 1e-18, name
        for name, value in one["weights"].items():
            assert (rank["weights"][name] - value).norm() <= 1e-12 * value.norm(), name
    first, second = (results[case]["weights"] for results in of_two_ranks)
    assert all(torch.equal(first[k], v) for k, v in second.items())


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_resumed_run_ends_like_the_uninterrupted_one(adapter: bool, toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    two_ranks("work:command_lines", tmp_path, lines=fit_lines(toy_folder, rows, adapter=adapter, strategy="ddp"))
    whole, resumed = (last_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    streams = whole["lightning_sft"]["rng"]
    assert not torch.equal(streams[0]["torch"], streams[1]["torch"]), "dropout drew for rows of different lengths"
    assert_equal(resumed, whole)
    assert all(("lora_" in name) == adapter for name in whole["state_dict"]), "no frozen base beside an adapter"
