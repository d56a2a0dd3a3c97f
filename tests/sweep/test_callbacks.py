"""The sweep callbacks on the command line: the bracket against plain runs, apply, resumed runs, what is refused."""

import json
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_sft.callbacks import CriticalLearningRateFinder, LearningRateSweep, SynonymRankMonitor
from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError
from lightning_sft.probes.history import JumpSettings
from tests.callbacks.stranger import PROBES, Stranger, by_definition
from tests.callbacks.stranger import fit as fit_stranger
from tests.distributed.fits import fit_arguments
from tests.running import run, run_folder, scalars, write_rows

STEPS = 5
PROBE = {"context": "say 1", "correct": "q", "competitor": "w", "leading_space": False, "name": "probe"}


def finder(**given: Any) -> dict[str, Any]:
    settings = {"steps": STEPS, "low": 1e-4, "high": 0.1, "points": 4, "resolution": 0.05, "probes": [PROBE], **given}
    return {"class_path": "CriticalLearningRateFinder", "init_args": settings}


def monitor() -> dict[str, Any]:
    return {"class_path": "SynonymRankMonitor", "init_args": {"every_n_steps": 1, "probes": [PROBE]}}


def fit(model: Path, rows: Path, root: str, *callbacks: dict[str, Any], **given: Any) -> Path:
    """A fit with dropout, shuffling, accumulation, clipping and warm-up; returns its folder."""
    defaults: dict[str, Any] = {
        "model__lr_scheduler": "linear",
        "model__warmup_steps": 2,
        "trainer__max_steps": STEPS,
        "trainer__default_root_dir": root,
        "trainer__callbacks": json.dumps(callbacks),
    }
    run("fit", fit_arguments(model, rows, **{**defaults, **given})[1:])
    return run_folder(Path(root) / "lightning_logs")


def completions(path: Path) -> Path:
    """Rows that teach the probe its answer, and rows that do not."""
    rows = [{"prompt": "say 1", "completion": "q" * (1 + i % 3)} for i in range(8)]
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in rows + [{"prompt": f"{i}", "completion": "z"} for i in range(8)])
    )
    return path


def test_both_ends_of_the_bracket_hold_in_plain_runs(toy_folder: Path, tmp_path: Path) -> None:
    rows = completions(tmp_path / "rows.jsonl")
    swept = fit(toy_folder, rows, "swept", finder(), monitor())
    found = json.loads((swept / "sweep" / "critical.json").read_text())
    assert found["status"] == "found"
    assert found["upper"] / found["lower"] - 1 == found["resolution"] <= 0.05
    trials = json.loads((swept / "sweep" / "critical.trials.json").read_text())["trials"]
    for rate, crosses in ((found["lower"], False), (found["upper"], True)):
        plain = fit(toy_folder, rows, str(crosses), monitor(), model__optimizer__lr=rate)
        flips = [value for step, value in scalars(plain)["synonyms/flip"] if step > 0]
        assert len(flips) == STEPS
        assert (max(flips) == 1.0) == crosses
        trial = trials[f"{rate!r} 0"]
        margins = [value for step, value in scalars(plain)["synonyms/margin"] if step > 0]
        assert [m[0] for m in trial["readings"]["margin"]] == margins[: len(trial["losses"])], "to the last bit"
    again = fit(toy_folder, rows, "again", finder())
    assert json.loads((again / "sweep" / "critical.json").read_text())["upper"] == found["upper"]


def test_the_rate_is_applied_and_the_schedule_keeps_its_shape(toy_folder: Path, tmp_path: Path) -> None:
    rows = completions(tmp_path / "rows.jsonl")
    plain = scalars(fit(toy_folder, rows, "plain"))["train/lr"]
    folder = fit(toy_folder, rows, "swept", finder(apply=True))
    applied = scalars(folder)["train/lr"]
    found = json.loads((folder / "sweep" / "critical.json").read_text())
    assert [lr for _, lr in applied] == pytest.approx([lr * found["upper"] / 1e-2 for _, lr in plain], rel=1e-6)
    assert max(lr for _, lr in applied) == pytest.approx(found["upper"], rel=1e-6)
    keys = scalars(folder)
    assert keys["sweep/critical/chosen"] == [(0, pytest.approx(found["upper"]))]
    assert keys["sweep/critical/critical_lower"][0][1] == pytest.approx(found["lower"])


def test_a_resumed_run_keeps_the_applied_rate_and_does_not_sweep_again(toy_folder: Path, tmp_path: Path) -> None:
    rows = completions(tmp_path / "rows.jsonl")
    given = {"model__lr_scheduler": "constant", "model__warmup_steps": 0}
    sweep = finder(apply=True)
    whole = fit(toy_folder, rows, "whole", sweep, **given)
    fit(toy_folder, rows, "parts", sweep, **given, trainer__max_steps=3)
    store = run_folder(Path("parts/lightning_logs")) / "sweep" / "critical.trials.json"
    before = store.stat().st_mtime_ns
    (store.parent / "critical.json").unlink()
    parts = fit(toy_folder, rows, "parts", sweep, **given, ckpt_path="last")
    assert store.stat().st_mtime_ns == before
    assert not (parts / "sweep" / "critical.json").exists(), "there was no second sweep"
    weights = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (whole, parts)]
    assert all(torch.equal(weights[1][k], v) for k, v in weights[0].items())


def test_a_strangers_module_is_swept_without_a_trace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def weights(*callbacks: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        module = Stranger(attention_dropout=0.1)
        fit_stranger(module, list(callbacks), tmp_path)
        return module.state_dict()

    sweep = LearningRateSweep(low=1e-5, high=10.0, steps=8, at_step=1)
    search = CriticalLearningRateFinder(PROBES[:2], low=1e-5, high=1e-1, points=3, steps=3, resolution=0.5, at_step=2)
    plain, swept = weights(), weights(sweep, search)
    assert sweep.result is not None
    assert search.result is not None
    assert len(sweep.result.rows()) > 3
    assert "The choice, valley: " in sweep.result.text()
    assert "the last step has none" in sweep.result.text()
    assert "The run keeps its own learning rate, " in caplog.text
    assert all(torch.equal(swept[k], v) for k, v in plain.items())


class Phi(Callback):
    """The order parameter of each probe, read from Hugging Face's logits after each optimizer step."""

    def __init__(self) -> None:
        self.read: list[list[float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.read.append([by_definition(pl_module.net, probe)[2] for probe in PROBES[:2]])


def jumps(values: Sequence[float]) -> bool:
    """Whether any change stands out, by the rule in docs/near_synonyms.md."""
    changes, rule = [abs(b - a) for a, b in pairwise(values)], JumpSettings()
    return max(changes) > max(rule.jump_factor * statistics.median(changes), rule.jump_floor)


@pytest.mark.parametrize(
    ("criterion", "quantile", "steps", "words"),
    [("phi", 1.0, 6, "Phi > 0"), ("first_jump", 0.5, 10, "first jump of Phi")],
)
def test_criteria_of_the_order_parameter_hold_in_plain_runs(
    criterion: Any, quantile: float, steps: int, words: str, tmp_path: Path
) -> None:
    search = CriticalLearningRateFinder(
        PROBES[:2], criterion=criterion, low=1e-3, high=0.1, points=3, steps=steps, resolution=1.0, quantile=quantile
    )
    fit_stranger(Stranger(), [search, SynonymRankMonitor(PROBES[:2])], tmp_path, max_steps=1)
    found = search.result
    assert found is not None
    assert found.status == "found"
    assert found.upper / found.lower <= 2.0
    assert words in found.text()
    for rate, crosses in ((found.lower, False), (found.upper, True)):
        phi = Phi()
        fit_stranger(Stranger(lr=rate), [phi], tmp_path, max_steps=steps)
        crossed = 0
        for values in zip(*phi.read, strict=True):
            if criterion == "phi":
                crossed += max(values) > 0
            else:  # at some step it had moved at once by far more than it usually does until then
                crossed += any(jumps(values[: n + 1]) for n in range(1, len(values)))
        assert (crossed / len(PROBES[:2]) >= quantile) == crosses, (criterion, rate)


def test_the_validation_criterion_needs_its_target(toy_folder: Path, tmp_path: Path) -> None:
    for given in ({"criterion": "val_nll"}, {"target": 1.0}):
        with pytest.raises(UserError, match="a target, in nats per token, with criterion val_nll"):
            CriticalLearningRateFinder(**given)
    folder = fit(
        toy_folder,
        completions(tmp_path / "rows.jsonl"),
        "val",
        finder(criterion="val_nll", target=5.4, probes=[]),
        data__val_split=4,
    )
    found = json.loads((folder / "sweep" / "critical.json").read_text())
    assert found["status"] == "found"
    assert [p["probe"] for p in found["probes"]] == ["validation"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LearningRateSweep(low=1.0, high=0.1), "0 < low < high"),
        (lambda: LearningRateSweep(steps=2), "4 or more"),
        (lambda: LearningRateSweep(smoothing=1.0), "below 1"),
        (lambda: LearningRateSweep(choice="best"), "steepest, minimum_tenth, valley, edge"),
        (lambda: LearningRateSweep(edge_steps=1), "edge_steps is 1"),
        (lambda: LearningRateSweep(name="a/b"), "a word"),
        (lambda: LearningRateSweep(at_step=-1), "at_step is -1"),
        (lambda: LearningRateSweep(divergence=1.0), "divergence is 1.0"),
        (lambda: CriticalLearningRateFinder([PROBES[2]]), "no near-synonym probe"),
        (lambda: CriticalLearningRateFinder(quantile=1.5), "quantile is 1.5"),
    ],
)
def test_bad_settings_are_refused_at_once(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_missing_data_and_callbacks_are_refused_in_words(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    for given, words in (
        ({"reads": "val"}, "Set data.val or data.val_split"),
        ({"keep_callbacks": ["GradientNoise"]}, "keep_callbacks names ['GradientNoise'], which this run does not have"),
    ):
        sweep = {"class_path": "LearningRateSweep", "init_args": {"steps": 4, **given}}
        line = fit_arguments(toy_folder, rows, trainer__callbacks=json.dumps([sweep]), data__val_split=None)
        with pytest.raises(SystemExit):
            main(line)
        assert words in capsys.readouterr().err
