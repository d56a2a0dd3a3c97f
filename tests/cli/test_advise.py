"""`lightning advise` says what to do before any training, and leaves nothing but its page."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_sft.advice.rules import advise
from lightning_sft.cli.advise import options_of_run
from lightning_sft.cli.entry import main
from lightning_sft.metrics import load_reading
from tests.advice.readings import planted
from tests.distributed.ranks import two_ranks
from tests.running import toy_arguments, write_rows

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
    given = arguments(toy_folder, tmp_path)
    page = page_of([*given, "--range_steps=12"], capsys)
    for title in ("Data", "Where the model stands", "Which objective", "Learning rate", "Cost"):
        assert f"## {title}" in page
    assert "36 rows" in page
    assert "leaks: 0 rows" in page
    assert re.search(r"\*\*0.001 is (sane|very low)", page)
    content = json.loads(Path("advice/advice.json").read_text())
    assert content["data"]["train"]["rows"] == 36
    assert content["cost"]["steps"] == 50
    assert content["cost"]["measured_steps"] == 4
    assert content["cost"]["validations"] == 5  # nine batches an epoch
    assert load_reading("advice/capability.json").all.rows == 36
    assert content["command"] in page
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


@pytest.mark.parametrize("skip", ["data", "cost,rate", "capability,cost,rate"])
def test_parts_can_be_left_out(toy_folder, tmp_path, capsys, skip):
    page = page_of([*arguments(toy_folder, tmp_path), "--skip", skip, "--range_steps=6", "--steps=1"], capsys)
    titles = {"data": "Data", "capability": "Where the model stands", "cost": "Cost", "rate": "Learning rate"}
    for part, title in titles.items():
        assert (f"## {title}" in page) == (part not in skip.split(","))


def test_a_wrong_rate_is_corrected_in_the_command(toy_folder, tmp_path, capsys):
    given = arguments(toy_folder, tmp_path, **{"model__optimizer.lr": 20.0})
    page = page_of([*given, "--skip=capability,cost,data"], capsys)
    assert "20 is too high" in page
    command = json.loads(Path("advice/advice.json").read_text())["command"]
    assert 1e-4 < float(command.rpartition("--model.optimizer.lr=")[2]) < 1
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
        ("--skip=data,capability,cost,rate", "leaves nothing to do"),
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


def test_the_command_of_a_thin_advice_is_a_comparison_that_parses():
    from lightning_sft.cli.compare.arms import objective_arms
    from lightning_sft.cli.compare.verb import parse

    command = advise(planted({"a": 0.4})).command("--config own.yaml")
    words = shlex.split(command)
    assert words[:2] == ["lightning", "compare"]
    asked, rest = parse(words[2:])
    arms = objective_arms(asked.objectives)
    assert len(arms) == 3
    assert arms[0].name == "NLL"
    assert rest == ["--config", "own.yaml"]


@pytest.mark.ranks
def test_two_ranks_write_one_page(toy_folder, tmp_path):
    given = arguments(toy_folder, tmp_path, trainer__strategy="ddp", trainer__devices=2, data__batch_size=2)
    two_ranks("work:command_lines", tmp_path, lines=[["advise", *given, "--range_steps=6", "--steps=1"]])
    content = json.loads((tmp_path / "advice/advice.json").read_text())
    assert content["capability"]["all"]["rows"] == 36
    assert content["cost"]["steps"] == 50
    assert not list(tmp_path.glob("lightning_logs*"))
