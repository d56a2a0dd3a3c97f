"""`lightning advise` says what to do before any training, and leaves nothing but its page."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_sft.advice.comparison import FIRST_LOOK, Comparison
from lightning_sft.advice.cost import Cost
from lightning_sft.advice.page import Survey
from lightning_sft.advice.rate import judge_rate
from lightning_sft.advice.rules import advise
from lightning_sft.cli.advise import options_of_run
from lightning_sft.cli.entry import main
from lightning_sft.metrics import load_reading
from tests.advice.test_rate import FALLS
from tests.advice.test_rules import CASES
from tests.distributed.ranks import two_ranks
from tests.running import run_folder, toy_arguments, write_rows

RATE = {"model__optimizer": "AdamW", "model__optimizer.lr": 1e-3, "trainer__max_steps": 50}


def arguments(toy_folder: Path, folder: Path, **settings: Any) -> list[str]:
    rows = write_rows(folder / "rows.jsonl", 40)
    return toy_arguments(toy_folder, rows, **{**RATE, **settings})


def page_of(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    main(["advise", *given])
    printed = capsys.readouterr().out
    assert Path("advice/advice.md").read_text() in printed
    return printed


def test_the_whole_page(toy_folder, tmp_path, capsys, monkeypatch):
    weights = []
    fit = Trainer.fit

    def watched(self, model, **given):
        try:
            fit(self, model, **given)
        finally:
            weights.append({n: p.detach().clone() for n, p in model.scorer.causal_lm.named_parameters()})

    monkeypatch.setattr(Trainer, "fit", watched)
    given = arguments(toy_folder, tmp_path, trainer__num_sanity_val_steps=-1, data__val_split=8)
    page = page_of([*given, "--range_steps=12"], capsys)
    for title in ("The run", "Data", "Where the model stands", "Which objective", "Learning rate", "Cost", "Memory"):
        assert f"## {title}" in page
    assert "32 rows" in page
    assert "leaks: no row also stands in train" in page
    assert re.search(r"\*\*0.001 is (sane|very low)", page)
    content = json.loads(Path("advice/advice.json").read_text())
    assert content["data"]["train"]["rows"] == 32
    assert content["cost"]["steps"] == 50
    assert content["cost"]["measured_steps"] == 11, "the steps of the range test are those that are timed"
    assert content["cost"]["validations"] == 7  # eight batches an epoch, and one before the first step
    assert "50 steps, 7 validations, the first of them before the first step: about " in page
    assert "Not in it: loading the model, " in page
    assert "A comparison on your data, `lightning compare`" in page, "eight rows judge it"
    assert "The curve is of the training loss at 11 rates from 1e-06 to " in page
    assert content["memory"]["strategy"] == "single"
    assert 0 < content["memory"]["weights"] <= content["memory"]["peak"]
    assert content["memory"]["text"] in page
    assert load_reading("advice/capability.json").all.rows == 32
    assert content["command"] in page
    assert (content["setup"]["model"], content["setup"]["rows_of_step"]) == (str(toy_folder), 4)
    assert content["setup"]["epochs"] == pytest.approx(50 * 4 / 32)
    assert "50, which is 6.25 epochs of 32 rows" in page
    assert "4 rows (4 a batch)" in page
    assert [text.count("\u27e6") for text in content["examples"]] == [1, 1]
    assert all(f"```text\n{text}\n```" in page for text in content["examples"])
    assert re.search(r"say \d", content["examples"][0])
    # nothing but the page, and the weights are the folder's
    assert {p.name for p in tmp_path.iterdir()} == {"rows.jsonl", "advice"}
    from transformers import AutoModelForCausalLM

    start = dict(AutoModelForCausalLM.from_pretrained(toy_folder).named_parameters())
    assert all(torch.equal(p, start[n]) for n, p in weights[0].items())
    _parses(content["command"], capsys)


def _parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    assert words[:2] == ["lightning", "fit"]
    with pytest.raises(SystemExit) as stop:
        main([*words[1:], "--print_config"])
    assert stop.value.code == 0
    capsys.readouterr()


@pytest.mark.parametrize("skip", ["data", "cost,rate,memory", "capability,cost,rate"])
def test_parts_can_be_left_out(toy_folder, tmp_path, capsys, skip):
    given = arguments(toy_folder, tmp_path, model__objective="auto")
    page = page_of([*given, "--skip", skip, "--range_steps=6", "--steps=1"], capsys)
    assert ("| objective | auto, which takes NLL |" in page) == (skip != "capability,cost,rate"), (
        "no trainer is needed then"
    )
    titles = {"data": "Data", "capability": "Where the model stands", "cost": "Cost", "rate": "Learning rate"}
    titles["memory"] = "Memory of a device"
    for part, title in titles.items():
        assert (f"## {title}" in page) == (part not in skip.split(","))


def test_a_wrong_rate_is_corrected_in_the_command(toy_folder, tmp_path, capsys):
    given = arguments(toy_folder, tmp_path, **{"model__optimizer.lr": 20.0})
    page = page_of([*given, "--skip=capability,cost,data"], capsys)
    assert "20 is too high" in page
    assert "takes another learning rate than the configuration: 20 is too high" in page.partition("## ")[0]
    command = json.loads(Path("advice/advice.json").read_text())["command"]
    assert 1e-4 < float(command.rpartition("--lr ")[2]) < 1
    assert "--model.optimizer.lr" not in command, "the wrong rate is not in it any more"
    _parses(command, capsys)


def test_a_rate_of_the_default_optimizer_is_set_with_its_name(toy_folder, tmp_path, capsys):
    given = [a for a in arguments(toy_folder, tmp_path) if not a.startswith("--model.optimizer")]
    page_of([*given, "--skip=capability,cost,data"], capsys)
    content = json.loads(Path("advice/advice.json").read_text())
    assert content["rate"]["rate"] == pytest.approx(2e-5)
    assert content["rate"]["verdict"] == "very low"
    _parses(content["command"], capsys)


def test_a_range_test_that_diverges_at_once_says_so(toy_folder, tmp_path, capsys):
    given = arguments(toy_folder, tmp_path, model__optimizer="SGD", **{"model__optimizer.lr": 1e7})
    page = page_of([*given, "--skip=cost,data", "--range_low=1e5", "--range_high=1e8"], capsys)
    assert "blows up at every rate" in page


def test_bad_data_are_the_data_error(toy_folder, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "say 1"}\n')
    with pytest.raises(SystemExit) as stop:
        main(["advise", *toy_arguments(toy_folder, bad)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "bad.jsonl:1" in message
    assert "Traceback" not in message
    assert not Path("advice").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--skip=speed", "names speed. Allowed: some of data, capability, cost, rate"),
        ("--skip=data,capability,cost,rate,memory", "leaves nothing to do"),
        ("--steps=0", "Allowed: 1 or more"),
        ("--range_low=2.0", "0 < low < high"),
    ],
)
def test_bad_options_are_named(toy_folder, tmp_path, capsys, option, message):
    with pytest.raises(SystemExit) as stop:
        main(["advise", *arguments(toy_folder, tmp_path), option])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_options_of_the_run_are_told_from_those_of_the_verb():
    given = ["--config", "a.yaml", "--skip", "rate", "--rows=5", "--model.lr", "1", "--output", "x", "--data.seed=3"]
    assert options_of_run(given) == ["--config", "a.yaml", "--model.lr", "1", "--data.seed=3"]


def test_what_a_comparison_costs_stands_beside_the_cost_of_a_fit():
    cost = Cost(3, 2.0, 10, 2, True, 5.0, 30.0, 2**30, 2**20, "cpu, 1 thread")
    page = Survey([], capability=CASES["weak"].reading, cost=cost).markdown()
    assert "10 steps, 2 validations, the first of them before the first step: about 30 s (20 s of training" in page
    assert "A comparison on your data, `lightning compare`: 3 objectives. Each searches" in page
    assert "45 fits like this run, about 22 min 30 s of training" in page


def test_the_command_is_as_one_types_it():
    given = ["--config=a.yaml", "--objective", "PowerFamily", "--objective.alpha=1", "--lr=9", "-c", "b.yaml"]
    survey = Survey(given, capability=CASES["weak"].reading, rate=judge_rate(9.0, FALLS))
    assert survey.rate.verdict == "too high"
    assert survey.fit() == "lightning fit a.yaml b.yaml --lr 0.01 --objective NLL"
    survey.rate = None
    assert survey.fit() == "lightning fit a.yaml b.yaml --lr=9 --objective NLL"
    survey.capability = None
    assert survey.command() == "lightning fit a.yaml b.yaml --objective PowerFamily --objective.alpha=1 --lr=9"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.compare])
def test_the_command_of_a_thin_advice_is_a_comparison_that_parses(name):
    from lightning_sft.cli.compare.arms import objective_arms
    from lightning_sft.cli.compare.verb import parse

    advice = advise(CASES[name].reading)
    words = shlex.split(advice.command("--config own.yaml"))
    assert words[:2] == ["lightning", "compare"]
    asked, rest = parse(words[2:])
    arms = objective_arms(asked.objectives)
    assert len(arms) == len(advice.arms) == 3
    assert arms[0].name == "NLL"
    assert rest == ["--config", "own.yaml"]


def test_what_a_comparison_costs_is_what_it_does_by_default():
    from lightning_sft.cli.compare.verb import parse

    usual, look = parse([])[0], parse(FIRST_LOOK.split())[0]
    for asked, counted in ((usual, Comparison.usual(3)), (look, Comparison.first_look(3))):
        assert counted.trials == (asked.points + 2 * asked.refine) * asked.search_replicates
        assert counted.replicates == asked.replicates
        assert counted.fits == 3 * (counted.trials + counted.replicates)


FITS = {advise(case.reading).fit(""): name for name, case in CASES.items()}


@pytest.mark.parametrize("name", FITS.values(), ids=[command.partition("objective ")[2] for command in FITS])
def test_the_fit_that_an_advice_ends_with_runs_to_its_end(toy_folder, tmp_path, name):
    advice = advise(CASES[name].reading)
    given = arguments(toy_folder, tmp_path, trainer__max_steps=2)
    words = shlex.split(advice.fit(shlex.join(given)))
    assert words[:2] == ["lightning", "fit"]
    main(words[1:])
    saved = torch.load(run_folder() / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["lightning_sft"]["objective"] == repr(advice.pick.build())


@pytest.mark.slow
def test_the_comparison_that_a_page_ends_with_runs_to_its_end(toy_folder, tmp_path, capsys):
    from lightning_sft.cli.compare.arms import objective_arms

    between = json.dumps([{"class_path": "CapabilityProbe", "init_args": {"weak": 1e-6, "strong": 0.9}}])
    given = arguments(toy_folder, tmp_path, trainer__callbacks=between, trainer__max_steps=2, data__val_split=8)
    page = page_of([*given, "--skip=rate", "--steps=1"], capsys)
    content = json.loads(Path("advice/advice.json").read_text())
    assert content["advice"]["place"] == "intermediate"
    assert content["command"] == content["advice"]["command"]
    assert "45 fits like this run, about" in page
    assert f"append `{FIRST_LOOK}`: 18 fits" in page
    assert content["fit"] in page
    words = shlex.split(content["command"])
    main([*words[1:], *FIRST_LOOK.split()])
    printed = capsys.readouterr().out
    arms = objective_arms(words[words.index("--objectives") + 1])
    assert len(arms) == 3
    assert all(arm.name in printed for arm in arms)


@pytest.mark.ranks
def test_two_ranks_write_one_page(toy_folder, tmp_path):
    given = arguments(toy_folder, tmp_path, trainer__strategy="ddp", trainer__devices=2, data__batch_size=2)
    two_ranks("work:command_lines", tmp_path, lines=[["advise", *given, "--range_steps=6", "--steps=1"]])
    content = json.loads((tmp_path / "advice/advice.json").read_text())
    assert content["capability"]["all"]["rows"] == 36
    assert content["cost"]["steps"] == 50
    assert not list(tmp_path.glob("lightning_logs*"))
