"""Phases of a step, their profile, and contenders that are left out or live in an environment of their own."""

import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks import axolotl_trainer, phases, profiled, step


def test_an_inner_phase_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 2.0, 5.0, 9.0, 10.0, 11.0])
    monkeypatch.setattr(phases.time, "process_time", lambda: next(times))
    clock = phases.Phases()
    clock.enter(phases.OPTIMIZER)
    clock.timed(phases.FORWARD, lambda: None)()
    clock.leave()
    assert clock.taken() == {phases.OPTIMIZER: 6.0, phases.FORWARD: 3.0}
    clock.timed(phases.BACKWARD, lambda: None)()
    assert clock.taken() == {phases.BACKWARD: 1.0}


def test_a_phase_ends_with_an_error() -> None:
    clock = phases.Phases()

    def fail() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        clock.timed(phases.FORWARD, fail)()
    assert set(clock.taken()) == {phases.FORWARD}
    torch.ones(100, 100).sum()
    assert clock.taken() == {}


def test_operators_belong_to_the_innermost_phase(capsys: pytest.CaptureFixture[str]) -> None:
    clock, matrix = phases.Phases(), torch.ones(50, 50)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        clock.enter(phases.FORWARD)
        matrix @ matrix
        clock.timed(profiled.HEAD, matrix.exp)()
        clock.leave()
        matrix @ matrix
    found = profiled.by_phase(profiler.events())
    assert set(found["aten::mm"]) == {phases.FORWARD, profiled.REST}
    assert set(found["aten::exp"]) == {profiled.HEAD}
    profiled.table(found, steps=1, rows=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("| all |")
    assert lines[-1].endswith("| 100.0% |")


def test_a_contender_that_does_not_import_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "Axolotl, best on a GPU"
    given = step.parser(None).parse_args(["--accelerator", "cuda"])
    monkeypatch.setitem(step.CONTENDERS, name, {**step.CONTENDERS[name], "needs": "no_such_module"})
    assert step.missing(given, name) == "ModuleNotFoundError: No module named 'no_such_module'"
    monkeypatch.setitem(step.CONTENDERS, name, {**step.CONTENDERS[name], "needs": "json"})
    assert step.missing(given, name) is None
    given.accelerator = "cpu"
    assert step.missing(given, name) == "it does not run on cpu"


@pytest.mark.parametrize("lora", [None, step.LORA])
def test_axolotl_is_told_the_same_rows_and_settings(tmp_path: Path, lora: dict | None) -> None:
    (tmp_path / "encoded.json").write_text(json.dumps([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}] * 2))
    settings = {
        "model": "folder",
        "encoded": str(tmp_path / "encoded.json"),
        "folder": str(tmp_path),
        "precision": "bf16",
        "batch_size": 4,
        "max_length": 512,
        "lora": lora,
        **step.CONTENDERS["Axolotl, best on a GPU"],
    }
    chosen = axolotl_trainer.configuration(settings)
    rows = [json.loads(line) for line in Path(chosen["datasets"][0]["path"]).read_text().splitlines()]
    assert rows == [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]}] * 2
    assert chosen["micro_batch_size"] == 4
    assert chosen["liger_fused_linear_cross_entropy"] is True
    assert chosen.get("lora_r") == (lora and 16)
