"""Fits with and without sweeps, on the command line, and what is left of the difference."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.distributed.fits import STEPS, fit_arguments, last_checkpoint
from tests.running import run_folder, scalars

WIDE = {"low": 1e-5, "high": 100.0}
#: one is right wherever the other is wrong, so that all of them never cross
PROBES = [
    {"context": "say 1", "correct": first, "competitor": second, "leading_space": False, "name": f"{first}{second}"}
    for first, second in (("w", "q"), ("q", "w"))
]


def sweeps(at_step: int) -> list[dict[str, Any]]:
    """A sweep of every kind before one optimizer step."""
    given: dict[str, dict[str, Any]] = {
        "LearningRateSweep": {**WIDE, "steps": 4, "reads": "val", "val_batches": 1},
        "CriticalLearningRateFinder": {"steps": 6, "points": 2, "low": 1e-2, "high": 1.0, "quantile": 1.0},
    }
    given["CriticalLearningRateFinder"]["probes"] = PROBES
    return [
        {"class_path": kind, "init_args": {**arguments, "at_step": at_step, "name": f"{kind}_{at_step}"}}
        for kind, arguments in given.items()
    ]


def line(model: Path, rows: Path, root: str, swept: bool, **given: Any) -> list[str]:
    """A fit with dropout, an adaptive objective, warm-up, workers, shuffling, accumulation and validation."""
    defaults: dict[str, Any] = {
        "data__num_workers": 1,
        "model__objective": "Adaptive",
        "model__lr_scheduler": "linear",
        "model__warmup_steps": 2,
        "trainer__val_check_interval": 4,
        "trainer__check_val_every_n_epoch": "null",
        "trainer__default_root_dir": root,
    }
    if swept:  # steps 3 and 4 are in the middle of an epoch
        defaults["trainer__callbacks"] = json.dumps([*sweeps(0), *sweeps(3)])
    return fit_arguments(model, rows, **{**defaults, **given})


def assert_no_trace(swept: Path, plain: Path) -> None:
    """Weights, optimizer, scheduler, random streams, sampler, objective, counters and logs are equal, bit by bit."""
    got, expected = last_checkpoint(swept), last_checkpoint(plain)
    assert expected["global_step"] == STEPS
    assert expected["lightning_sft"]["rng"]
    assert_same({k: v for k, v in got.items() if k != "callbacks"}, {k: expected[k] for k in got if k != "callbacks"})
    got_logs, logs = (scalars(run_folder(root / "lightning_logs")) for root in (swept, plain))
    assert "train/loss" in logs
    assert {k: v for k, v in got_logs.items() if k.partition("/")[0] not in ("sweep", "perf")} == {
        k: v for k, v in logs.items() if not k.startswith("perf/")
    }
    reports = sorted(run_folder(swept / "lightning_logs").glob("sweep/*.trials.json"))
    trials = [json.loads(path.read_text())["trials"] for path in reports]
    assert len(reports) == len(sweeps(0)) * 2
    assert all(len(trial["losses"]) > 1 for found in trials for trial in found.values())


def assert_same(got: Any, expected: Any, where: str = "") -> None:
    """Two trees of data and tensors are equal, bit by bit."""
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype, where
        assert torch.equal(got, expected), where
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(got[key], value, f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for i, pair in enumerate(zip(got, expected, strict=True)):
            assert_same(*pair, f"{where}.{i}")
    else:
        assert got == expected, where
