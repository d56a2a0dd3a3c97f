"""What a first run says at its end, and what the same run says when it goes on."""

import logging
import re
import shlex
from pathlib import Path

import pytest

from lightning_sft.cli.entry import main
from tests.docs.pages import ROOT
from tests.running import run, run_folder, scalars, toy_arguments, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:The number of training batches")


def table(text: str) -> list[list[str]]:
    """Rows of the table of held-out readings, the heading without its first two words."""
    lines = text[text.index("held out") :].splitlines()
    return [lines[0].removeprefix("held out").split(), *(line.split() for line in lines[1 : lines.index("")])]


def suggested(out: str) -> list[str]:
    """The commands below ``Train again`` in the list of next commands, of which there is one list."""
    assert out.count("\nNext ") == 1
    lines = [line.strip() for line in out[out.index("\nNext ") :].splitlines()]
    at = next((i for i, line in enumerate(lines) if line.startswith("Train again: ")), len(lines))
    return lines[at + 1 :]


def suggested_after(out: str) -> list[str]:
    """The commands of the one list of next commands that a reading ends with."""
    assert out.count("\nNext ") == 1
    return [line.strip() for line in out[out.index("\nNext ") :].removeprefix("\nNext ").splitlines()]


def test_a_short_run_and_its_continuation(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    given = toy_arguments(toy_folder, write_rows(tmp_path / "rows.jsonl"), trainer__max_steps=2)
    with caplog.at_level("INFO"):
        run("fit", given)
    out = capsys.readouterr().out
    written = {str(file.relative_to(run_folder())) for file in run_folder().rglob("*") if file.is_file()}
    page = (ROOT / "docs/getting_started.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([\w./]+)` \|", page[page.index("In this folder you find") :].split("\n\n")[1], re.M)
    assert {re.sub(r"tfevents.*", "tfevents...", name) for name in written} == set(listed)
    heading, *rows = table(out)
    first, then = out[out.index("\nNext ") + 1 :].splitlines()[:2]
    assert first.startswith("Next       Go on: this was too short to tell")
    assert then.strip() == f"lightning fit {run_folder()} --max_steps 15"
    assert suggested(out) == [], "the advice is NLL, and the run has it"
    assert "lightning validate lightning_logs/version_0" in out
    assert "lightning test" not in out, "there are no rows for it"
    assert heading == ["step", "2"], "one reading stands once"
    assert all(len(row) == 2 for row in rows)
    assert "Capability on" in caplog.text
    run("fit", [*given, "--ckpt_path=last", "--trainer.max_steps=4"])
    resumed = capsys.readouterr()
    assert (resumed.out + resumed.err).count("checkpoints/last.ckpt") == 1, "where it is from, without its folder"
    assert f"Folder     {run_folder()}\nFrom       checkpoints/last.ckpt in it\n" in resumed.out
    heading, *rows = table(resumed.out)
    assert heading == ["step", "2", "step", "4"], "steps beyond the added validation end with another"
    assert len(scalars(run_folder())["val/nll"]) == 2
    run("validate", [str(run_folder())])  # as the end of a fit says to type
    ended = capsys.readouterr().out
    assert f"From       {run_folder()}/checkpoints/best.ckpt" in ended
    assert table(ended + "\n")[0] == ["value"]
    assert suggested_after(ended) == [f"lightning {verb} {run_folder()}" for verb in ("chat", "export")]
    assert len(scalars(run_folder())["val/nll"]) == 2, "a reading writes nothing into the run's curves"


def test_the_advice_names_a_configuration_that_is_there(
    toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    with caplog.at_level("INFO"):
        run("fit", toy_arguments(toy_folder, rows, trainer__max_steps=1, model__objective="PowerFamily"))
    assert "Next:" not in caplog.text, "commands stand in one list, at the end"
    (line,) = suggested(capsys.readouterr().out)
    assert "lightning fit lightning_logs/version_0/config.yaml --objective NLL" in line
    main([*line.removeprefix("lightning ").split(), "--trainer.max_steps=1"])
    assert "objectives.NLL" in (run_folder() / "config.yaml").read_text()


def test_a_run_that_picks_says_why_once(toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    with caplog.at_level("INFO"):
        run("fit", toy_arguments(toy_folder, rows, trainer__max_steps=1, model__objective="auto"))
    assert caplog.text.count("The model does not know this task") == 1
    assert "auto takes NLL" in caplog.text
    assert "Capability on 20 training rows" in caplog.text
    assert "Next:" not in caplog.text


def test_a_comparison_that_is_advised_has_rows_to_judge_by(
    toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, judges = write_rows(tmp_path / "rows.jsonl", 12), write_rows(tmp_path / "val.jsonl", 8)
    given = toy_arguments(toy_folder, rows, data__val_split=None, data__val=judges)  # too few for one objective
    with caplog.at_level("INFO"):
        short = [*given, "--trainer.max_steps=1"]
        run("fit", short)
    assert suggested(capsys.readouterr().out) == [], "a comparison of runs as short would tell nothing either"
    with caplog.at_level("INFO"):
        run("fit", [*short, "--trainer.max_steps=9", "--model.optimizer=SGD", "--model.optimizer.lr=1e-6"])  # 3 epochs
    (said,) = suggested(capsys.readouterr().out)
    run("advise", [*given, "--skip=cost,rate"])
    (page,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("lightning compare"))
    for line in (said, page):
        main([*shlex.split(line)[1:], "--power"])
        assert "is found in 80% of such comparisons" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["score", "audit", "advise", "fit"])
def test_a_file_in_the_way_is_named_before_any_work(
    verb: str, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    Path("taken").write_text("")
    given = {"audit": [f"--after={toy_folder}", f"--data={rows}"]}.get(verb, toy_arguments(toy_folder, rows))
    place = "--trainer.default_root_dir=taken" if verb == "fit" else "--output=taken/here.parquet"
    with pytest.raises(SystemExit) as stop:
        main([verb, *given, place])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "taken" in said.err
    assert "Give another" in said.err or "give another" in said.err
    assert "Reading" not in said.out + said.err


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


@pytest.mark.parametrize(
    ("verb", "option"), [("score", "--compare"), ("audit", "--before"), ("advise", "--skip"), ("inspect", "--color")]
)
def test_the_help_of_a_verb_begins_with_its_own_options(
    verb: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert not stop.value.code
    usage, *lines = capsys.readouterr().out.splitlines()
    assert usage.startswith(f"usage: lightning {verb} ")
    assert usage.endswith("[--KEY VALUE ...]")
    assert any(line.strip().startswith(option) for line in lines[:40])
