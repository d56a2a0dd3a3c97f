"""The real model: what the monitor says of the shipped silent failure is what probes of the same contexts read."""

import json
from pathlib import Path

import pytest

from lightning_sft.callbacks import SilentFailureMonitor
from lightning_sft.cli.entry import main
from lightning_sft.models.loading import load_causal_lm
from tests.benchmarks.silent import MODEL, agreement
from tests.docs.pages import ROOT
from tests.running import QUIET

pytestmark = pytest.mark.real


def test_the_shipped_experiment_fails_for_the_monitor_as_for_its_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, float] = {}
    report = SilentFailureMonitor._report

    def and_compare(self, trainer, pl_module) -> None:
        report(self, trainer, pl_module)
        found.update(agreement(self, pl_module, load_causal_lm(MODEL)))

    monkeypatch.setattr(SilentFailureMonitor, "_report", and_compare)
    monkeypatch.chdir(ROOT)
    config = "configs/experiment/silent_failure.yaml"
    main(["fit", f"--config={config}", *QUIET, f"--trainer.logger.init_args.save_dir={tmp_path}"])
    assert found["tokens held against probes"] == 8  # of nine, three answers, stops and ends
    assert found["outcomes that differ"] == 0
    assert found["largest difference of an NLL, nats"] < 1e-3

    folder = tmp_path / "silent_failure" / "version_0"
    verdicts = json.loads((folder / "order_parameter" / "verdicts.json").read_text())["verdicts"]
    (probe,) = (v for v in verdicts if v["probe"] == "clever.train")
    lines = [json.loads(line) for line in (folder / "silent.jsonl").read_text().splitlines()]
    (line,) = (x for x in lines if (x["correct"], x["competitor"]) == (" clever", " smart"))
    assert probe["verdict"].startswith("failed")
    pairs = {"p_correct": "p_correct_end", "p_competitor": "p_competitor_end", "nll_start": "loss_start"}
    for ours, theirs in {**pairs, "nll": "loss_end"}.items():
        assert line[ours] == pytest.approx(probe[theirs], rel=1e-3), ours
