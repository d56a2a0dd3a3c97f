"""Layers split over ranks that see the same rows, alone and with FSDP2 across them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.fits import assert_equal, fit_arguments, fit_lines, last_checkpoint
from tests.distributed.ranks import some_ranks, two_ranks
from tests.lazy import Lazy
from tests.running import run, run_folder, scalars, write_rows
from tests.toys import save_toy

pytestmark = pytest.mark.ranks

#: rows of one optimizer step: 4 ranks in pairs share out what 2 ranks, or one device, see as one micro-batch
RUNS: dict[str, tuple[str, int, int]] = {"gpt_neox": ("gpt_neox", 1, 2), "qwen3": ("qwen3", 1, 2)}
RUNS |= {"gpt_neox, sharded over the data, too": ("gpt_neox", 2, 1)}
EXACT: dict[str, Any] = {"dropout": 0.0, "model__dtype": "float64"}

FRAGMENT = Path(__file__).parents[2] / "configs" / "strategy" / "fsdp2_tensor_parallel.yaml"
SPLIT: dict[str, object] = {
    "class_path": "ModelParallelStrategy",
    "init_args": {"data_parallel_size": 1, "tensor_parallel_size": 2, "save_distributed_checkpoint": False},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Lazy[Path]:
    folder = tmp_path_factory.mktemp("models")
    return Lazy(lambda kind: save_toy(folder / kind, kind))


@pytest.fixture(scope="module")
def fits(models: Lazy[Path], tmp_path_factory: pytest.TempPathFactory) -> Lazy[Path]:
    """The folder of a fit on several ranks, by its name."""
    folder = tmp_path_factory.mktemp("tensor_parallel")
    rows = write_rows(folder / "rows.jsonl")

    def fit(name: str) -> Path:
        kind, data, batch = RUNS[name]
        given = {**EXACT, "data__batch_size": batch}
        lines = fit_lines(models[kind], rows, strategy=SPLIT, root=name, **given)[: 3 if name == "gpt_neox" else 1]
        if data == 2:
            verb, *words = fit_arguments(models[kind], rows, trainer__default_root_dir=f"{name}/whole", **given)
            lines = [[verb, f"--config={FRAGMENT}", *words]]
        some_ranks(2 * data, "work:command_lines", folder, lines=lines)
        return folder / name

    return Lazy(fit)


@pytest.mark.parametrize("name", RUNS)
def test_trajectory_is_that_of_one_device(name: str, models: Lazy[Path], fits: Lazy[Path]) -> None:
    kind, data, batch = RUNS[name]
    settings = {**EXACT, "data__batch_size": data * batch, "trainer__default_root_dir": "one"}
    verb, *arguments = fit_arguments(models[kind], write_rows(Path("rows.jsonl")), **settings)
    run(verb, arguments)
    one, several = Path("one"), fits[name] / "whole"
    expected, got = (last_checkpoint(root)["state_dict"] for root in (one, several))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert (got[key] - value).norm() <= 1e-10 * value.norm(), key
    readings, again = (scalars(run_folder(root / "lightning_logs")) for root in (one, several))
    for key in ("train/loss", "train/grad_norm", "val/nll", "val/token_accuracy"):
        assert [v for _, v in again[key]] == pytest.approx([v for _, v in readings[key]], rel=1e-6), key


def test_resumed_run_ends_like_the_uninterrupted_one(fits: Lazy[Path]) -> None:
    assert_equal(*(last_checkpoint(fits["gpt_neox"] / part) for part in ("parts", "whole")))


def test_ranks_see_the_same_rows_and_hold_parts_of_layers(models: Lazy[Path], tmp_path: Path) -> None:
    first, second = two_ranks("work:split_facts", tmp_path, model=str(models["gpt_neox"]))
    assert first["rows"] == second["rows"] != []
    weights = {name for name, shape in first["shapes"].items() if len(shape) == 2 and "layers" in name}
    assert {name for name in first["split"] if name.endswith("weight")} == weights
    for name, here in first["local"].items():
        there = second["local"][name]
        if name in first["split"]:
            assert here.numel() + there.numel() == torch.Size(first["shapes"][name]).numel()
            assert not torch.equal(here, there)
        else:
            assert torch.equal(here, there), f"{name} is whole on every rank, and dropout drew the same masks"
