"""What a first run says at its end, and what the same run says when it goes on."""

import logging
from pathlib import Path

import pytest

from lightning_sft.cli.entry import main
from tests.running import run, run_folder, scalars, toy_arguments, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def table(text: str) -> list[list[str]]:
    """Rows of the table of held-out readings, the heading without its first two words."""
    lines = text[text.index("held out") :].splitlines()
    return [lines[0].removeprefix("held out").split(), *(line.split() for line in lines[1 : lines.index("")])]


def test_a_short_run_and_its_continuation(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    given = toy_arguments(toy_folder, write_rows(tmp_path / "rows.jsonl"), trainer__max_steps=2)
    with caplog.at_level("INFO"):
        run("fit", given)
    heading, *rows = table(capsys.readouterr().out)
    assert heading == ["step", "2"], "one reading stands once"
    assert all(len(row) == 2 for row in rows)
    assert "Capability on" in caplog.text
    assert "Next:" not in caplog.text, "the advice is NLL, and the run has it"
    run("fit", [*given, "--ckpt_path=last", "--trainer.max_steps=4"])
    heading, *rows = table(capsys.readouterr().out)
    assert heading == ["step", "2", "step", "4"], "steps beyond the added validation end with another"
    assert len(scalars(run_folder())["val/nll"]) == 2


def test_the_advice_names_a_configuration_that_is_there(
    toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    with caplog.at_level("INFO"):
        run("fit", toy_arguments(toy_folder, rows, trainer__max_steps=1, model__objective="PowerFamily"))
    (line,) = (line for line in caplog.text.splitlines() if line.startswith("Next: "))
    assert "--config lightning_logs/version_0/config.yaml --model.objective NLL" in line
    main([*line.removeprefix("Next: lightning ").split(), "--trainer.max_steps=1"])
    assert "objectives.NLL" in (run_folder() / "config.yaml").read_text()


def test_a_run_without_a_logger_leaves_nothing_in_the_current_folder(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    run("fit", toy_arguments(toy_folder, rows, trainer__max_steps=1, trainer__logger=False, data__val_split=None))
    assert not {"capability.json", "silent.jsonl"} & {path.name for path in Path().iterdir()}


@pytest.mark.parametrize("verb", ["score", "inspect", "advise", "audit", "compare", "fit"])
def test_a_verb_without_options_ends_with_a_message(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert logging.getLogger("lightning.pytorch").isEnabledFor(logging.INFO), "later runs of the process are heard"
