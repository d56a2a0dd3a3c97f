"""Objectives side by side on a toy language model."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.objectives import NLL, PowerFamily
from lightning_sft.sweep.compare import check_comparison, compare_objectives
from lightning_sft.sweep.session import SweepSettings
from tests.running import run, run_folder, scalars, toy_arguments, write_rows
from tests.sweep.toys import Toy, between

SWEEP = {
    "class_path": "ObjectiveSweep",
    "init_args": {
        "objectives": [
            {"class_path": "NLL"},
            {"class_path": "PowerFamily", "init_args": {"alpha": 1.0}},
            {"class_path": "Adaptive"},
        ],
        "steps": 4,
        "low": 1e-4,
        "high": 1.0,
        "points": 3,
        "seeds": 2,
    },
}


def test_every_objective_has_as_many_trials_and_a_rate_of_its_own(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    given: dict[str, Any] = {"model__lr_scheduler": "constant", "model__optimizer": "torch.optim.AdamW"}
    arguments = toy_arguments(toy_folder, rows, **given)
    run("fit", [*arguments, "--trainer.default_root_dir=plain"])
    run("fit", [*arguments, "--trainer.default_root_dir=swept", f"--trainer.callbacks={json.dumps([SWEEP])}"])
    swept, plain = (run_folder(Path(root) / "lightning_logs") for root in ("swept", "plain"))
    found = json.loads((swept / "sweep" / "objectives.json").read_text())
    kept = json.loads((swept / "sweep" / "objectives.trials.json").read_text())["trials"]
    assert [row["objective"].partition("(")[0] for row in found["objectives"]] == ["NLL", "PowerFamily", "Adaptive"]
    for row in found["objectives"]:
        assert len(row["search"]) == 3 + 2
        rates = dict(row["search"])
        assert rates[row["lr"]] == min(value for value in rates.values() if value is not None)
        assert row["val_nll"]["mean"] < found["start"]["val_nll"]
        assert row["val_nll"]["low"] < row["val_nll"]["mean"] < row["val_nll"]["high"]
        own = [trial for key, trial in kept.items() if row["objective"] in key]
        assert len(own) == 3 + 2 + 2
        assert len({tuple(t["losses"]) for t in own if t["lr"] == row["lr"]}) == 3, "each seed sees other rows first"
    first = {
        row["objective"]: next(t["losses"] for key, t in kept.items() if key.startswith(f"0.01 0 {row['objective']}"))
        for row in found["objectives"]
    }
    assert len({losses[0] for losses in first.values()}) == 1, "from one snapshot, on the same rows"
    assert len({tuple(losses) for losses in first.values()}) > 1, "under losses of their own"
    assert "95% t-intervals" in found["text"]
    logged, expected = scalars(swept), scalars(plain)
    assert {k: v for k, v in logged.items() if k.startswith("train/")} == {
        k: v for k, v in expected.items() if k.startswith("train/")
    }


def test_bad_comparisons_say_what_is_allowed(tmp_path: Path) -> None:
    for objectives in ([NLL()], [NLL(), NLL()]):
        with pytest.raises(UserError, match="two or more, all different"):
            check_comparison(objectives, 3, 1, 1, "val_nll")
    two = [NLL(), PowerFamily(alpha=1.0)]
    with pytest.raises(UserError, match="points of 3 or more"):
        check_comparison(two, 2, 1, 1, "val_nll")
    with pytest.raises(UserError, match="val_nll, val_mean_p, val_accuracy"):
        check_comparison(two, 3, 1, 1, "loss")

    def work(trainer: Any, module: Any) -> Any:
        return compare_objectives(trainer, module, SweepSettings("toy", 1, None), two, low=0.1, high=1.0)

    with pytest.raises(UserError, match="no method use_objective"):
        between(Toy([1.0], Tensor.sum), work, tmp_path)
