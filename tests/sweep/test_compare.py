"""Objectives side by side on a toy language model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from torch import Tensor

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.compare.rates import RateSearch
from lightning_sft.errors import UserError
from lightning_sft.objectives import NLL, PowerFamily
from lightning_sft.sweep.compare import Comparison, _report, _search, check_comparison, compare_objectives
from lightning_sft.sweep.observers import HeldOutObserver
from lightning_sft.sweep.parts import PartsObserver
from lightning_sft.sweep.session import SweepSettings
from lightning_sft.sweep.trial import Trial, TrialRunner
from tests.fitting import trainer
from tests.running import run, run_folder, scalars, toy_arguments, write_rows
from tests.sweep.toys import Toy, between

SEARCH = RateSearch(1e-4, 1.0, 3, 1, 1)
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


@pytest.mark.filterwarnings("ignore:Rates are selected by val/nll")
def test_every_objective_has_as_many_trials_and_a_rate_of_its_own(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    given: dict[str, Any] = {"model__lr_scheduler": "constant", "model__optimizer": "torch.optim.AdamW"}
    arguments = toy_arguments(toy_folder, rows, **given)
    run("fit", [*arguments, "--trainer.default_root_dir=plain"])
    run("fit", [*arguments, "--trainer.default_root_dir=swept", f"--trainer.callbacks={json.dumps([SWEEP])}"])
    swept, plain = (run_folder(Path(root) / "lightning_logs") for root in ("swept", "plain"))
    found = json.loads((swept / "sweep" / "objectives.json").read_text())
    kept = json.loads((swept / "sweep" / "objectives.trials.json").read_text())["trials"]
    report = found["report"]
    assert [row["name"].partition("(")[0] for row in report["arms"]] == ["NLL", "PowerFamily", "Adaptive"]
    assert report["score"]["key"] == "val/nll", "no toy gets an answer right"
    assert "which favours NLL" in found["text"]
    trials = {len(row["search"]) for row in report["arms"]}
    assert len(trials) == 1, "equal trials"
    assert min(trials) >= 3 + 2
    for row in report["arms"]:
        rates = dict(row["search"])
        assert rates[row["rate"]] == min(value for value in rates.values() if value is not None)
        nll = row["readings"]["val/nll"]
        assert nll["mean"]["mean"] < report["start"]["val/nll"]
        assert nll["mean"]["low"] < nll["mean"]["mean"] < nll["mean"]["high"]
        assert len(nll["values"]) == 2
        assert (nll["against_first"] is None) == (row is report["arms"][0])
        own = [trial for key, trial in kept.items() if row["name"] in key]
        assert len(own) == len(row["search"]) + 2
        assert len({tuple(t["losses"]) for t in own if t["lr"] == row["rate"]}) == 3, "each seed sees other rows first"
    first = {
        row["name"]: next(t["losses"] for key, t in kept.items() if key.startswith(f"0.01 0 {row['name']}"))
        for row in report["arms"]
    }
    assert len({losses[0] for losses in first.values()}) == 1, "from one snapshot, on the same rows"
    assert len({tuple(losses) for losses in first.values()}) > 1, "under losses of their own"
    assert "95% t-interval over paired" in found["text"]
    logged, expected = scalars(swept), scalars(plain)
    assert {k: v for k, v in logged.items() if k.startswith("train/")} == {
        k: v for k, v in expected.items() if k.startswith("train/")
    }


def test_bad_comparisons_say_what_is_allowed(tmp_path: Path) -> None:
    for objectives in ([NLL()], [NLL(), NLL()]):
        with pytest.raises(UserError, match="two or more, all different"):
            check_comparison(objectives, SEARCH, 1, "val_nll")
    two = [NLL(), PowerFamily(alpha=1.0)]
    with pytest.raises(UserError, match="points of 3 or more"):
        check_comparison(two, RateSearch(points=0), 1, "val_nll")
    with pytest.raises(UserError, match="auto, val/exact_match, val/nll, val/mean_p"):
        check_comparison(two, SEARCH, 1, "loss")

    def work(trainer: Any, module: Any) -> Any:
        return compare_objectives(trainer, module, SweepSettings("toy", 1, None), two, SEARCH)

    with pytest.raises(UserError, match="no method use_objective"):
        between(Toy([1.0], Tensor.sum), work, tmp_path)


class Parts(Callback):
    """Reads held-out rows in parts, and as a whole, before the first step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with TrialRunner(trainer, pl_module, 1) as runner:
            observers = {parts: PartsObserver(trainer, pl_module, parts) for parts in (1, 3)}
            self.read = {parts: runner.start([observer]) for parts, observer in observers.items()}
            self.whole = runner.start([HeldOutObserver(trainer)])
        self.answer_tokens = observers[3].answer_tokens
        with pytest.raises(UserError, match="There are 7 held-out rows, and 8 parts"):
            PartsObserver(trainer, pl_module, 8)


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_parts_of_held_out_rows_are_the_whole(layout: str, toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    data = SFTDataModule(train=str(rows), val_split=7, batch_size=4, layout=layout, cache_dir=False)  # type: ignore[arg-type]
    module, parts = SFTModule(str(toy_folder), pass_at_k=[2]), Parts()
    trainer(max_steps=1, callbacks=[parts], num_sanity_val_steps=0, limit_val_batches=3).fit(module, data)
    (whole,) = parts.read[1]["val/nll"]
    assert whole == pytest.approx(parts.whole["val_nll"][0], rel=1e-12)
    assert parts.read[1]["val/mean_p"] == pytest.approx(parts.whole["val_mean_p"], rel=1e-12)
    assert parts.read[1]["val/exact_match"] == [0.0]
    third = parts.read[3]["val/nll"]
    assert len(set(third)) == 3
    assert min(third) < whole < max(third)
    trained = data.sets["val"].report.trained
    assert parts.answer_tokens == pytest.approx(float(trained.mean()))


def test_trials_that_diverge_count_as_the_worst() -> None:
    def trial(name: str, lr: float, order: int) -> Trial:
        good = -abs(math.log10(lr) + 2)
        values = {"val/exact_match": [0.5 + 0.1 * good] * 4, "val/nll": [2.0 - good] * 4}
        bad = name == "b" and (order == 2 or lr > 0.05)
        return Trial(lr, readings={k: [v] for k, v in values.items()}, outcome="diverged" if bad else "finished")

    found = _search(["a", "b"], RateSearch(1e-3, 1e-1, 3, 0, 1), "auto", trial, 3.0)
    assert found.score.key == "val/exact_match"
    assert found.progress.best == {"a": 1e-2, "b": 1e-2}
    judged = {name: [trial(name, 1e-2, order) for order in (1, 2, 3)] for name in ("a", "b")}
    report = _report("toy", "0", found, judged, {"val/exact_match": 0.0, "val/nll": 3.0})
    b = report.arm("b")
    assert b.diverged == 1
    assert b.readings["val/exact_match"].values == [0.5, 0.0, 0.5]
    assert b.readings["val/nll"].values == [2.0, 2.0, 2.0]
    assert dict(b.search)[0.1] is None
    assert "b: 1 of 3 runs diverged and count as the worst." in Comparison("toy", 0, "0", 4, report).text()
