"""A key that stands twice in a configuration is an error, wherever it stands; YAML would take the last one."""

from pathlib import Path

import pytest

from lightning_sft.cli.duplicates import refuse_duplicates
from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError

TWICE = {
    "data:\n  val:\n    easy: a.jsonl\n    hard: b.jsonl\n    easy: c.jsonl\n": r"'data.val.easy' twice, lines 3 and 5",
    "trainer:\n  max_steps: 1\ndata:\n  train: a\ntrainer:\n  max_steps: 2\n": r"'trainer' twice, lines 1 and 5",
    "trainer:\n  callbacks:\n    - sets: {a: x, a: y}\n": r"'trainer.callbacks.0.sets.a' twice, lines 3 and 3",
}


@pytest.mark.parametrize("text", TWICE, ids=range(len(TWICE)))
def test_files(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("twice.yaml").write_text(text)
    for verb in ("fit", "inspect"):
        with pytest.raises(SystemExit) as stop:
            main([verb, "--config", "twice.yaml"])
        assert stop.value.code == 2
        assert "twice.yaml has" in (said := capsys.readouterr().err)
        assert TWICE[text] in said


def test_values_of_the_command_line() -> None:
    for arguments in (["--data.val={a: x, a: y}"], ["--data.val", '{"a": "x", "a": "y"}']):
        with pytest.raises(UserError, match=r"--data.val has 'a' twice\. Only the last one"):
            refuse_duplicates(["fit", *arguments])


def test_what_stands_once_passes() -> None:
    refuse_duplicates([])
    Path("once.yaml").write_text("a: {x: 1}\nb: {x: 1, <<: {y: 1}, <<: {z: 2}}\nc: [{x: 1}, {x: 2}]\n")
    Path("broken.yaml").write_text("a: [1\n")
    Path("rows.json").write_text('{"a": 1, "a": 2}')
    refuse_duplicates(["fit", "--config=once.yaml", "-c", "broken.yaml", "--data.train", "rows.json", "--x={a: b: c}"])
