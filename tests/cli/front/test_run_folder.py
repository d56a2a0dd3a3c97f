"""A run's folder by itself: ``lightning validate RUN``."""

from pathlib import Path

import pytest

from lightning_sft.cli.front.run_folder import spell_out_run
from lightning_sft.cli.front.words import tidy
from lightning_sft.cli.next_commands import after_reading, listed, next_commands
from lightning_sft.errors import UserError

RUN = "lightning_logs/NLL_lr0.001"
LAST = f"{RUN}/checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def _run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / RUN / "checkpoints").mkdir(parents=True)
    (tmp_path / RUN / "config.yaml").write_text("model: {}\n")
    (tmp_path / "mine.yaml").write_text("model: {}\n")
    (tmp_path / "kept_nothing").mkdir()
    (tmp_path / "kept_nothing" / "config.yaml").write_text("model: {}\n")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (f"validate {RUN}", f"--config={RUN}/config.yaml --ckpt_path={RUN}"),
        (f"validate {RUN}/ --batch-size 2", f"--config={RUN}/config.yaml --batch_size 2 --ckpt_path={RUN}"),
        (f"test {RUN} --ckpt_path last", f"--config={RUN}/config.yaml --ckpt_path {LAST}"),
        (f"predict {RUN} mine.yaml", f"--config={RUN}/config.yaml --config=mine.yaml --ckpt_path={RUN}"),
        (f"score {RUN} --ckpt_path=best", f"--config={RUN}/config.yaml --ckpt_path={RUN}"),
        (f"score {RUN} --model a/b", f"--config={RUN}/config.yaml --model a/b"),
        (f"fit {RUN} --max_steps 9", f"--config={RUN}/config.yaml --max_steps 9 --ckpt_path={LAST}"),
        (f"fit {RUN}/config.yaml", f"--config={RUN}/config.yaml"),
        ("inspect kept_nothing", "--config=kept_nothing/config.yaml"),
        ("fit kept_nothing --ckpt_path a.ckpt", "--config=kept_nothing/config.yaml --ckpt_path a.ckpt"),
        (f"inspect {RUN}", f"--config={RUN}/config.yaml"),
        (f"chat {RUN} --prompt hello", f"--prompt hello --ckpt_path={RUN}"),
        (f"export {RUN} --ckpt_path last", f"--ckpt_path {LAST}"),
    ],
)
def test_what_a_folder_stands_for(typed: str, meant: str) -> None:
    verb, *words = typed.split()
    made = spell_out_run(verb, tidy(words, takes_files=verb not in ("chat", "export")))
    assert made == meant.split()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("chat lightning_logs", ("'lightning_logs'", "no run's folder", f"Did you mean {RUN!r}?", "--ckpt_path")),
        (f"export {RUN} {RUN}", ("2 words", "one run's folder")),
        ("fit kept_nothing", ("'kept_nothing'", "no checkpoints", "write kept_nothing/config.yaml")),
        ("validate lightning_logs", ("'lightning_logs'", "a folder of runs and none itself", RUN)),
    ],
)
def test_what_is_no_run_is_named(typed: str, words: tuple[str, ...]) -> None:
    verb, *given = typed.split()
    with pytest.raises(UserError) as raised:
        spell_out_run(verb, tidy(given, takes_files=verb not in ("chat", "export")))
    for word in words:
        assert word in str(raised.value)


def test_what_one_types_after_a_fit_is_short() -> None:
    commands = next_commands(Path(RUN), Path(RUN) / "checkpoints/best.ckpt")
    assert commands == {
        "Look at the run:": [f"lightning report {RUN}"],
        "Use its best model:": [f"lightning {verb} {RUN}" for verb in ("chat", "export")],
    }
    (Path(RUN) / "config.yaml").write_text("data: {val_split: 0.1, test: some.jsonl, val: null}\n")
    (Path(RUN) / "events.out.tfevents.1").touch()
    look, use = next_commands(Path(RUN), Path(RUN) / "checkpoints/last.ckpt").values()
    assert look == [f"tensorboard --logdir {RUN}", f"lightning report {RUN}"]
    assert use == [f"lightning {verb} {RUN}" for verb in ("test", "validate", "chat", "export")], "it has rows for both"
    elsewhere = next_commands(Path(RUN), Path("kept/best.ckpt"))
    assert elsewhere["Use its best model:"][-1] == f"lightning export --ckpt_path kept/best.ckpt --output {RUN}/model"
    (Path(RUN) / "model").mkdir()
    commands = next_commands(Path(RUN), Path(RUN) / "checkpoints/best.ckpt")
    assert commands["Use its best model:"][-1] == f"lightning export {RUN} --output {RUN}/model-2", (
        "of before it went on"
    )


def test_a_run_goes_on_as_it_went_on_last() -> None:
    assert spell_out_run("fit", [f"--config={RUN}"])[0] == f"--config={RUN}/config.yaml"
    for step in (9, 30):
        (Path(RUN) / f"config_resumed_at_step_{step}.yaml").write_text("data: {test: rows.jsonl}")
    (Path(RUN) / "config_resumed_at_step_x.yaml").touch()
    newest = f"--config={RUN}/config_resumed_at_step_30.yaml"
    for verb in ("fit", "test", "predict", "score"):
        assert spell_out_run(verb, [f"--config={RUN}"])[0] == newest
    assert spell_out_run("advise", [f"--config={RUN}"]) == [f"--config={RUN}/config.yaml"], "of a run that is to begin"
    commands = next_commands(Path(RUN), Path(RUN) / "checkpoints/best.ckpt")
    assert f"lightning test {RUN}" in commands["Use its best model:"], "its rows were given when it went on"


def test_what_follows_a_reading() -> None:
    best = Path(RUN) / "checkpoints" / "best.ckpt"
    assert after_reading("validate", best) == [f"lightning chat {RUN}", f"lightning export {RUN}"]
    (Path(RUN) / "config.yaml").write_text("data: {val_split: 0.1, test: rows.jsonl}")
    (Path(RUN) / "model").mkdir()
    assert after_reading("validate", best) == [f"lightning test {RUN}", f"lightning chat {RUN}"], "export would refuse"
    assert after_reading("test", best) == [f"lightning chat {RUN}"]
    assert after_reading("validate", Path("elsewhere/best.ckpt")) == []
    assert listed(["a", "b"]) == "\nNext       a\n           b"
