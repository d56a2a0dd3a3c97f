"""`lightning compare` on toys: real runs, from settings to files."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_sft
from lightning_sft.callbacks import TrainingMetrics
from lightning_sft.cli.compare import identity, trial, verb
from lightning_sft.cli.compare.arms import objective_arms, setting_arm
from lightning_sft.cli.compare.identity import model_digest
from lightning_sft.cli.compare.prepare import make_design, starts_ranks
from lightning_sft.cli.compare.verb import _replaced, parse
from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.facts import depends_on
from lightning_sft.compare.ledger import write_result
from lightning_sft.compare.queue import SharedQueue
from lightning_sft.compare.result import RunResult
from lightning_sft.errors import UserError
from lightning_sft.sweep import code
from tests.running import QUIET, run, write_rows

ROOT = Path(lightning_sft.__file__).parent
SMALL = ["--points=3", "--refine=0", "--grow=0", "--low=1e-4", "--high=1e-2", "--replicates=2"]


def settings(model: Path, rows: Path, steps: int = 2, **more: Any) -> list[str]:
    """Settings of `fit` for very short runs."""
    given = {
        "model.model_name_or_path": model,
        "model.optimizer": "torch.optim.AdamW",
        "data.train": rows,
        "data.val_split": 6,
        "data.batch_size": 4,
        "data.cache_dir": "false",
        "trainer.max_steps": steps,
        "trainer.num_sanity_val_steps": -1,
        **more,
    }
    return [*QUIET, *(f"--{key}={value}" for key, value in given.items())]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


def designed(arguments: Sequence[str]) -> Design:
    return make_design(*parse(arguments))


def test_a_comparison_from_settings_to_files(
    toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_sft.progress.DELAY", 0.0)
    monkeypatch.setattr("lightning_sft.progress.EVERY", 0.0)
    command = [*settings(toy_folder, rows), *SMALL, "--objectives", "NLL,PowerFamily(1)"]
    run("compare", command)
    printed = capsys.readouterr()
    folder = Path("comparisons/compare")
    found = json.loads((folder / "report.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["NLL", "PowerFamily(1)"]
    assert found["score"]["key"] == "val/nll"
    assert "which favours NLL" in found["notes"][0]
    for arm in found["arms"]:
        rates = {rate: value for rate, value in arm["search"]}
        assert len(rates) == 3
        assert rates[arm["rate"]] == min(rates.values())
        assert len(arm["readings"]["val/nll"]["values"]) == 2
        assert arm["readings"]["val/nll"]["mean"]["mean"] < found["start"]["val/nll"]
    assert len({value for arm in found["arms"] for _, value in arm["search"]}) == 6, "arms train under their objectives"
    assert len(set(found["replicates_digests"])) == 2, "each replicate is judged by rows of its own"
    assert found["sentence"] in printed.out
    assert "| arm | (before) | NLL | PowerFamily(1) |" in printed.out
    assert "| arm | learning rate | NLL |" in found["table"]
    assert found["judged_rows"] == [6, 6]
    assert (folder / "report.md").read_text().startswith(found["sentence"])
    assert (folder / "forest.png").read_bytes().startswith(b"\x89PNG")
    runs = sorted((folder / "runs").glob("*.json"))
    assert len(runs) == 2 * 3 + 2 * 2
    assert "search: NLL at 0.0001: NLL " in printed.err
    assert "[10/10] replicate 2 of 2: PowerFamily(1): NLL " in printed.err
    assert not list(folder.rglob("*.ckpt")), "runs that are done keep no checkpoint"
    for name in ("0_NLL", "1_PowerFamily_1_"):
        events = EventAccumulator(str(folder / "tensorboard" / name))
        events.Reload()
        assert "compare/val/nll" in events.Tags()["scalars"]

    searched = [found for found in map(json.loads, map(Path.read_text, runs)) if found["key"].startswith("search")]
    assert [[point["step"] for point in found["curve"]] for found in searched] == [[2]] * 6, "read once, at the end"
    assert "compare: 2 arms, 3 learning rates each, then 2 replicates at each arm's own rate: 10 runs" in printed.err

    best = min(found["arms"], key=lambda arm: arm["readings"]["val/nll"]["mean"]["mean"])
    how = "which was ahead here, though not beyond chance"
    assert f"Train once with {best['name']}, {how}, at its rate of {best['rate']:.3g} (" in printed.out
    assert re.search(r"\(one run like it took [^)]+ here\):", printed.out)
    assert "search: NLL at 0.0001: 1 of 2 steps (50%)" in printed.err
    assert "replicate 2 of 2: NLL, validation: " in printed.err
    settings_of_best = yaml.safe_load((folder / "best.yaml").read_text())
    assert settings_of_best["model"]["optimizer"]["init_args"]["lr"] == best["rate"]
    (line,) = (line.strip() for line in printed.out.splitlines() if "lightning fit" in line)
    run("fit", [*line.split()[2:], "--max_steps=1", "--trainer.num_sanity_val_steps=0"])
    assert list(Path("lightning_logs").glob("*/checkpoints/last.ckpt")), "a run with a logger, unlike those compared"
    capsys.readouterr()

    before = {path: path.stat().st_mtime_ns for path in runs}
    run("compare", command)
    again = capsys.readouterr()
    assert again.out == printed.out
    assert "replicate" not in again.err
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*.json")} == before


def test_arms_differ_in_anything_and_a_failing_one_is_named(
    toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = ["model.adapter=peft.LoraConfig", "model.adapter.r=2", "model.adapter.target_modules=all-linear"]
    wrong = ["model.adapter=peft.LoraConfig", "model.adapter.target_modules=['no_such_layer']"]
    arms = ["--arm", "full", "model.lr_scheduler=constant", "--arm", "lora", *lora, "--arm", "wrong", *wrong]
    command = [*settings(toy_folder, rows), "--points=0", "--replicates=2", "--name=arms", "--select=val/mean_p", *arms]
    run("compare", command)
    found = json.loads(Path("comparisons/arms/report.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["full", "lora"]
    assert "no_such_layer" in found["left_out"]["wrong"]
    assert found["arms"][0]["rate"] is None
    assert "wrong failed in every run and is left out" in capsys.readouterr().out
    values = [arm["readings"]["val/nll"]["values"] for arm in found["arms"]]
    assert values[0] != values[1]


def one_run(command: list[str], folder: Path, rate: float = 1e-3) -> Any:
    design = designed([*command, "--objectives", "NLL,PowerFamily(1)"])
    return trial.run_here(design, RunSpec("judged", 0, "NLL", rate), folder)


def same(result: Any) -> Any:
    """What two equal runs have in common."""
    return [(p.step, p.tokens, p.values) for p in result.curve], result.steps, result.tokens, result.rows


def test_an_interrupted_run_goes_on_to_the_same_result(
    toy_folder: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"trainer.val_check_interval": 2, "trainer.check_val_every_n_epoch": "null"}
    command = [*settings(toy_folder, rows, steps=6, **more), *SMALL]
    whole = one_run(command, tmp_path / "whole")
    assert [point.step for point in whole.curve] == [0, 2, 4, 6]
    with monkeypatch.context() as patch:

        def interrupt(self: Any, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                raise KeyboardInterrupt

        patch.setattr(TrainingMetrics, "on_train_batch_end", interrupt, raising=False)
        with pytest.raises(BaseException):  # noqa: B017, PT011  # Lightning turns Ctrl-C into an exit of its own
            one_run(command, tmp_path / "cut")
    assert list((tmp_path / "cut").rglob("last.ckpt"))
    assert same(one_run(command, tmp_path / "cut")) == same(whole)
    assert same(one_run(command, tmp_path / "other", rate=1e-2)) != same(whole)


def test_runs_of_other_code_are_named_and_not_used(
    toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*settings(toy_folder, rows), "--points=0", "--replicates=2", "--objectives", "NLL,EAFT"]
    of = designed(command)
    for spec in (RunSpec("judged", replicate, arm.name, None) for replicate in range(2) for arm in of.arms):
        result = RunResult(of.digest_of(spec), spec.key, "finished", depends_on=depends_on(of, spec))
        write_result(Path("comparisons/compare/runs"), result)
    of_file = code._digest

    def changed(*parts: str) -> Any:
        of_runs = [f"{name}.py" for name in identity._ALONE]
        told = lambda file: set(parts) & set(file.relative_to(ROOT).parts) and file.name not in of_runs  # noqa: E731
        return lambda file: f"{of_file(file)} changed" if told(file) else of_file(file)

    monkeypatch.setattr(verb, "work", lambda *_: None)
    monkeypatch.setattr(verb, "finish", lambda *_: None)
    monkeypatch.setattr(code, "_digest", changed("audit", "cli", "compare", "export", "figures", "scoring", "page.py"))
    assert designed(command).digest == of.digest, "code that decides no run is no part of it"
    run("compare", command)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(code, "_digest", changed("eaft.py", "head"))
    run("compare", command)
    said = capsys.readouterr().err
    assert "2 stored runs are not used: written by another version of the package code (head).\n" in said
    both = "another version of the package code (head) and of the named classes (objectives).\n"
    assert f"2 stored runs are not used: written by {both}" in said


def test_a_search_reads_what_selects_and_trains_the_same(toy_folder: Path, rows: Path, tmp_path: Path) -> None:
    more = {"trainer.val_check_interval": 4, "trainer.check_val_every_n_epoch": "null"}
    drift = [f"--trainer.callbacks+={name}" for name in ("DriftMonitor", "LearningRateMonitor")]
    command = [*settings(toy_folder, rows, steps=6, **more), *SMALL, *drift, "--objectives", "NLL,EAFT"]
    spec = RunSpec("search", 0, "NLL", 1e-3)
    by_nll, by_drift = designed(command), designed([*command, "--select=drift/general/kl"])
    lean, read = (trial.run_here(of, spec, tmp_path / of.select[:3]) for of in (by_nll, by_drift))
    assert [point.step for point in lean.curve] == [6]
    assert not [key for key in lean.readings if not key.startswith("val/")]
    assert "drift/general/kl" in read.readings
    judged = replace(by_nll, arms=by_nll.arms)
    object.__setattr__(judged, "draw", lambda _: by_nll.draw(spec))
    whole = trial.run_here(judged, RunSpec("judged", 0, "NLL", 1e-3), tmp_path / "whole")
    assert [point.step for point in whole.curve] == [0, 4, 6], "judged by the end of the run, whenever else it is read"
    for key, value in lean.readings.items():
        assert whole.readings[key] == read.readings[key] == value
    assert by_nll.digest_of(spec) != by_drift.digest_of(spec)


def test_a_run_that_diverges_is_a_result(toy_folder: Path, rows: Path, tmp_path: Path) -> None:
    result = one_run([*settings(toy_folder, rows, steps=4), *SMALL], tmp_path / "run", rate=1e30)
    assert result.outcome == "diverged"
    assert result.error is None


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_on_two_ranks_reads_what_one_rank_reads(toy_folder: Path, rows: Path, tmp_path: Path) -> None:
    command = [*settings(toy_folder, rows), *SMALL, "--objectives", "NLL,PowerFamily(1)"]
    spec = RunSpec("judged", 0, "NLL", 1e-3)
    one = trial.run_here(designed(command), spec, tmp_path / "one")
    halves = ["--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp"]
    two = trial.run_apart(designed([*command, *halves]), spec, tmp_path / "two")
    assert two.outcome == "finished", two.error
    assert two.tokens == one.tokens
    for key in ("val/nll", "val/mean_p"):
        assert two.readings[key] == pytest.approx(one.readings[key], rel=1e-4)


@pytest.mark.slow  # a fresh interpreter imports everything again
def test_a_run_of_its_own_process_gives_the_same(toy_folder: Path, rows: Path, tmp_path: Path) -> None:
    command = [*settings(toy_folder, rows), *SMALL, "--objectives", "NLL,PowerFamily(1)"]
    design = designed(command)
    spec = RunSpec("judged", 0, "PowerFamily(1)", 1e-3)
    here, apart = (one(design, spec, tmp_path / name) for name, one in
                   (("here", trial.run_here), ("apart", trial.run_apart)))  # fmt: skip
    assert same(here) == same(apart)
    assert not starts_ranks(design)
    assert starts_ranks(designed([*command, "--trainer.devices=2"]))


def test_a_file_of_judged_rows_is_dealt_out_to_the_replicates(toy_folder: Path, rows: Path, tmp_path: Path) -> None:
    judged = write_rows(tmp_path / "judged.jsonl", count=7, longest=5)
    more = {"data.val_split": "null", "data.val": judged}
    design = designed([*settings(toy_folder, rows, steps=1, **more), *SMALL, "--objectives", "NLL,PowerFamily(1)"])
    assert design.parts
    specs = [RunSpec("search", 0, "NLL", 1e-3), *(RunSpec("judged", i, "NLL", 1e-3) for i in range(2))]
    assert [design.draw(spec).part for spec in specs] == [0, 1, 2]
    one, other = (trial.run_here(design, spec, tmp_path / spec.kind) for spec in specs[:2])
    assert one.outcome == other.outcome == "finished"
    assert one.rows["val"] != other.rows["val"]
    assert one.rows["train"] == other.rows["train"], "a file of training rows stays whole; its order differs"
    assert one.readings["val/nll"] != other.readings["val/nll"]


def test_the_shipped_configuration_draws_its_rows_and_reads_drift(toy_folder: Path, tmp_path: Path) -> None:
    file = Path(lightning_sft.__file__).parents[1] / "configs" / "experiment" / "compare.yaml"
    small = ["--trainer.max_steps=1", "--data.val.size=4", "--data.train.size=8", "--data.batch_size=4"]
    model = [f"--model.model_name_or_path={toy_folder}", "--model.dtype=float32", *QUIET]
    design = designed([f"--config={file}", *model, *small, "--objectives", "NLL,PowerFamily(1)"])
    assert not design.parts
    assert design.select == "auto"
    one, other = (trial.run_here(design, RunSpec("judged", i, "NLL", 1e-4), tmp_path / f"{i}") for i in range(2))
    assert one.rows["train"] != other.rows["train"]
    assert one.rows["val"] != other.rows["val"]
    assert {"val/exact_match", "val/nll", "drift/general/kl", "drift/general/nll"} <= one.readings.keys()
    assert {"val/exact_match", "drift/general/nll"} <= one.start.keys()
    assert one.answer_tokens is not None
    assert one.answer_tokens < 24


def test_a_shared_comparison_begins_goes_on_and_refuses_others(
    toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna", reason="the extra sweep")
    storage = ["--storage=journal:shared/compare.log", "--beat=1"]
    arms = ["--objectives=NLL,PowerFamily(1)", "--points=0", "--replicates=2"]
    run("compare", [*settings(toy_folder, rows), *arms, *storage])
    first = capsys.readouterr().out
    run("sweep", ["status", *storage])
    said = capsys.readouterr().out
    assert "compare: 4 of 4 runs done." in said
    run("sweep", ["worker", *storage, "--folder=elsewhere"])
    table = capsys.readouterr().out
    assert table.partition("Written")[0] == first.partition("Written")[0]
    assert not Path("elsewhere/compare/work").exists(), "nothing is left to run"
    write_rows(rows, count=30)
    with pytest.raises(SystemExit) as stop:
        run("sweep", ["worker", *storage])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "cannot take part: of the arm NLL, data is " in message
    assert " in the comparison" in message
    with pytest.raises(SystemExit):
        run("sweep", ["--help"])
    printed = capsys.readouterr().out
    assert "lightning sweep worker" in printed
    assert "lightning sweep status" in printed
    typo = "--storage=journal:shared/compar.log"
    for bad, expected in (
        (["worker"], "needs --storage"),
        (["wrk"], "got 'wrk'; did you mean 'worker'"),
        (["status", typo], "did you mean 'compare.log'?"),
        (["worker", typo], "did you mean 'compare.log'?"),
    ):
        with pytest.raises(SystemExit):
            run("sweep", bad)
        assert expected in capsys.readouterr().err
    assert not list(Path("shared").glob("compar.*"))


@pytest.mark.slow  # two workers import everything
def test_the_loop_of_the_page_starts_workers(toy_folder: Path, rows: Path) -> None:
    pytest.importorskip("optuna", reason="the extra sweep")
    page = Path(lightning_sft.__file__).parents[1] / "docs" / "how_to" / "compare.md"
    (loop,) = re.findall(r"<!-- test: workers -->\n```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    given = [*settings(toy_folder, rows), "--points=0", "--replicates=2", "--beat=1"]
    program = f"{sys.executable} -m lightning_sft"
    loop = loop.replace("lightning compare mine.yaml", f"{program} compare {shlex.join(given)}")
    assert program in loop
    subprocess.run(["bash", "-c", loop], check=True)
    one, two = (json.loads(Path(f"work{i}/compare/report.json").read_text()) for i in (1, 2))
    assert one == two
    assert {r["outcome"] for r in (json.loads(p.read_text()) for p in Path().glob("work?/*/runs/*.json"))} == {
        "finished"
    }


def search_settings(model: Path, rows: Path) -> list[str]:
    """Settings of a fit that searches the rate which lowers the validation NLL to 5.6 in one step."""
    finder = {"criterion": "val_nll", "target": 5.6, "low": 1e-8, "high": 1e-2, "points": 2, "steps": 1}
    search = ["--trainer.callbacks=CriticalLearningRateFinder", "--trainer.callbacks.resolution=2.0"]
    search += [f"--trainer.callbacks.{key}={value}" for key, value in finder.items()]
    more = {"trainer.num_sanity_val_steps": 0, "trainer.logger": "false"}
    return [*settings(model, rows, **more), *search]


@pytest.mark.slow  # three workers import everything
def test_the_loop_of_the_page_of_sweeps_brackets_together(toy_folder: Path, rows: Path) -> None:
    pytest.importorskip("optuna", reason="the extra sweep")
    page = Path(lightning_sft.__file__).parents[1] / "docs" / "sweeps.md"
    (loop,) = re.findall(r"<!-- test: workers -->\n```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    loop = loop.replace("lightning sweep", f"{sys.executable} -m lightning_sft sweep")
    loop = loop.replace("--config critical_lr.yaml", shlex.join(search_settings(toy_folder, rows)))
    assert str(toy_folder) in loop
    subprocess.run(["bash", "-c", loop], check=True)
    found = json.loads(Path("sweep/critical.json").read_text())
    keys = re.findall(r'"result ([^"]*)"', Path("shared/critical.log").read_text())
    assert sorted(float(key.split()[0]) for key in keys) == [trial["lr"] for trial in found["trials"]]
    assert len(keys) == 2 + 3 + 3, "the grid, four parts, and four again"


def test_workers_of_a_search_print_the_same_bracket(
    toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="the extra sweep")
    command = ["critical", "--storage=journal:shared/search.log", "--workers=2"]
    command += ["--name=mine", "--output=searches", "--beat=7", "--patience=9"]
    storage = Path("shared/search.log")
    opened: list[tuple[Any, dict[str, float]]] = []

    def opening(url: str, name: str, kept: str, **timing: float) -> Any:
        opened.append((name, timing))
        return SharedQueue(url, name, kept, **timing)

    monkeypatch.setattr("lightning_sft.sweep.shared_store.SharedQueue", opening)

    def found() -> Any:
        run("sweep", [*command, *search_settings(toy_folder, rows)])
        result = json.loads(Path("searches/sweep/mine.json").read_text())
        Path("searches/sweep/mine.trials.json").unlink(missing_ok=True)  # as on another machine
        return {key: value for key, value in result.items() if key != "trials"}

    first = found()
    assert first["lower"] < first["upper"] <= 3 * first["lower"]
    handed_in = storage.read_text().count('"result ')
    assert handed_in == 2 + 2 + 2 + 1, "the grid, three parts twice, then as many as the resolution needs"
    assert found() == first
    assert storage.read_text().count('"result ') == handed_in, "nothing is run again"
    assert not list(Path().rglob("*.ckpt"))
    assert opened == [("mine", {"beat": 7.0, "poll": 5.0, "patience": 9.0})] * 2
    assert not Path("sweep").exists()
    with pytest.raises(SystemExit):
        run("sweep", [*command, *settings(toy_folder, rows)])
    assert "has 0 CriticalLearningRateFinder among trainer.callbacks" in capsys.readouterr().err


def test_power_runs_nothing(toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("compare", [*settings(toy_folder, rows), "--objectives=NLL,EAFT", "--power", "--spread=0.05", "--wish=0.02"])
    printed = capsys.readouterr().out
    assert "8 replicates and 2 arms" in printed
    assert "A difference of 0.02 needs 52 replicates" in printed
    assert not Path("comparisons").exists()


def test_power_tells_also_where_the_comparison_could_not_run(
    toy_folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in ("--data.val_split=null", "--points=2", "--model.model_name_or_path=nowhere/none"):
        run("compare", [*settings(toy_folder, rows), "--objectives=NLL,EAFT,DFT", "--power", wrong])
        printed = capsys.readouterr().out
        assert "8 replicates and 3 arms" in printed
        assert "The comparison itself would stop before its first run:" in printed


def test_a_best_arm_with_rates_of_its_own_groups_says_why_there_is_no_file() -> None:
    from types import SimpleNamespace

    from lightning_sft.cli.compare.finish import _next

    arm = SimpleNamespace(name="NLL", rate=1e-3)
    report = SimpleNamespace(ranking=["NLL"], arm=lambda _: arm)
    settings_of_arm = yaml.safe_dump({"model": {"parameter_rules": [{"match": "lora_B", "lr": 1e-2}]}, "trainer": {}})
    design = SimpleNamespace(arm=lambda _: SimpleNamespace(config=settings_of_arm))
    told = "\n".join(_next(design, None, {}, report, Path("folder")))  # type: ignore[arg-type]
    assert "best.yaml is not written: parameter_rules" in told
    assert "the first group's is 0.001" in told


def test_objectives_become_settings() -> None:
    arms = objective_arms("NLL, PowerFamily(1),Focal(gamma=2.0),RunnerUpMargin(margin=2, weight=4)")
    assert [arm.name for arm in arms] == [
        "NLL",
        "PowerFamily(1)",
        "Focal(gamma=2.0)",
        "RunnerUpMargin(margin=2,weight=4)",
    ]
    chosen = [json.loads(arm.arguments[0].partition("=")[2]) for arm in arms]
    assert chosen[0] == {"class_path": "NLL"}
    assert chosen[1] == {"class_path": "PowerFamily", "init_args": {"alpha": 1}}
    assert chosen[3]["init_args"] == {"margin": 2, "weight": 4}
    assert setting_arm(["a", "model.adapter.r=8", "--data.seed=1"]).arguments == (
        "--model.adapter.r=8",
        "--data.seed=1",
    )


BAD = {
    "one arm": (["--objectives=NLL"], "There is one arm to compare"),
    "no arms": ([], "There are no arms"),
    "unknown objective": (["--objectives=NLL,Nll"], "names 'Nll'; did you mean 'NLL'?"),
    "no such argument": (["--objectives=NLL,PowerFamily(beta=1)"], r"PowerFamily\(.*alpha"),
    "not closed": (["--objectives=NLL,PowerFamily(1"], "no name with arguments"),
    "no value": (["--objectives=NLL,PowerFamily(x)"], "plain values"),
    "empty": (["--objectives=NLL,,EAFT"], "names with commas between"),
    "same twice": (["--objectives=NLL,NLL"], "with different names"),
    "arm without a name": (["--objectives=NLL", "--arm", "a=1"], "Give a name first"),
    "arm without a value": (["--objectives=NLL", "--arm", "a", "model.adapter"], "KEY=VALUE"),
    "setting of an arm": (
        ["--objectives=NLL", "--arm", "a", "model.adaptr=x"],
        r"did you mean --adapter \(in full --model.adapter",
    ),
    "no judged rows": (["--objectives=NLL,EAFT", "--data.val_split=null"], "A comparison trains and judges"),
    "no replicates": (["--objectives=NLL,EAFT", "--replicates=1"], "an interval needs two"),
    "no grid": (["--objectives=NLL,EAFT", "--points=2"], "points of 3 or more"),
    "name": (["--objectives=NLL,EAFT", "--name=a/b"], "it names the comparison's folder"),
    "number": (["--objectives=NLL,EAFT", "--replicates=many"], "--replicates.*many"),
    "a checkpoint": (["--objectives=NLL,EAFT", "--ckpt_path=a.ckpt"], "start from the model"),
    "no readings": (["--objectives=NLL,EAFT", "--trainer.fast_dev_run=true"], "no readings to compare"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, toy_folder: Path, rows: Path) -> None:
    arguments, message = BAD[case]
    with pytest.raises(UserError, match=message):
        designed([*settings(toy_folder, rows), *arguments])
    assert not Path("comparisons").exists()


@pytest.mark.parametrize("name", ["/no/such/model", "./nothing", "~/missing.gguf"])
def test_a_model_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match=re.escape(name)):
        model_digest(name, None)


def test_the_report_of_an_earlier_comparison_is_said_to_be_replaced(tmp_path: Path) -> None:
    assert _replaced(tmp_path, ["2 stored runs are not used: ..."]) == [], "there is none"
    (tmp_path / "report.md").touch()
    assert _replaced(tmp_path, []) == [], "of the same comparison"
    (line,) = _replaced(tmp_path, ["2 stored runs are not used: ..."])
    assert line.endswith("is replaced at the end. To keep it, stop this and give another --name.")
