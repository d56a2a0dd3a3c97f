"""A run ends with one suggestion: what the trained model speaks for comes before what was read at the start."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_sft.callbacks import RunStory
from lightning_sft.callbacks.next_step import NextStep, after_verdicts, ends_with_commands, next_steps_of
from lightning_sft.callbacks.silent_rows import to_watch_more
from lightning_sft.metrics.capability import EXACT, WRONG, TokenTable, read_capability
from lightning_sft.metrics.capability_reading import CapabilityReading
from lightning_sft.places import near
from lightning_sft.probes.token_sample import SampledRow, TokenSample
from lightning_sft.probes.watched_set import WatchedSet

BEFORE = NextStep("it knew the task", "lightning fit --config a.yaml --objective PowerFamily", measured=False)
AFTER = NextStep("it failed silently", "lightning fit --config a.yaml --objective RunnerUpMargin", measured=True)


def run(*steps: NextStep | None) -> Any:
    callbacks = [SimpleNamespace(next_step=step) for step in steps]
    return SimpleNamespace(callbacks=[*callbacks, SimpleNamespace()], checkpoint_callbacks=[], loggers=[], log_dir=None,
                           default_root_dir=".")  # fmt: skip


def test_one_is_said() -> None:
    assert next_steps_of(run(BEFORE, AFTER)) == [AFTER]
    assert next_steps_of(run(AFTER, None, BEFORE)) == [AFTER]
    assert next_steps_of(run(None, BEFORE)) == [BEFORE]
    assert next_steps_of(run(None)) == []


def test_a_run_that_was_too_short_goes_on_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.callbacks.run_story.run_folder", lambda trainer: None)
    on = NextStep("too short to tell", "lightning fit RUN --max_steps 45", measured=False, only_longer=True)
    compare = NextStep("nobody knows", "lightning compare a.yaml", measured=False, compares=True)
    assert next_steps_of(run(compare, on)) == [on]
    assert next_steps_of(run(BEFORE, on)) == [on, BEFORE]
    assert next_steps_of(run(BEFORE, on, AFTER)) == [AFTER]
    story, trainer = RunStory(), run(BEFORE, on)
    story.next_commands = lambda folder, checkpoint: {"Look at the run:": ["lightning report RUN"]}
    monkeypatch.setattr("lightning_sft.callbacks.run_story._best", lambda trainer: Path("RUN/checkpoints/best.ckpt"))
    assert list(story._closing(trainer)) == [
        "Next       Go on: too short to tell:",
        f"             {on.command}",
        "           Look at the run:",
        "             lightning report RUN",
        "           Train again: it knew the task:",
        f"             {BEFORE.command}",
    ]


def test_a_run_does_not_go_on_under_an_objective_that_is_to_be_avoided() -> None:
    on = NextStep("most are behind", "lightning fit RUN --max_steps 45", measured=True, only_longer=True)
    other = NextStep("it does not know the task", "lightning fit a.yaml --objective NLL", measured=False, against=True)
    assert next_steps_of(run(other, on)) == [other]
    assert next_steps_of(run(other, AFTER)) == [other, AFTER]


def test_a_run_whose_loss_rose_does_not_go_on(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    more = ["--max_steps", "42"]
    for outcome in ("too early", "still outranked"):
        step, line = after_verdicts([outcome], tmp_path, "silent.jsonl", more, loss_rose=True)
        assert step is not None
        assert step.command == ""
        assert "lower learning rate" in line
        step, line = after_verdicts([outcome], tmp_path, "silent.jsonl", more)
        assert step is not None
        assert "--max_steps 42" in step.command


def test_it_is_said_without_a_checkpoint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.callbacks.run_story.run_folder", lambda trainer: None)
    story, trainer = RunStory(), run(BEFORE, AFTER)
    trainer.callbacks.append(story)
    assert not ends_with_commands(trainer)
    assert list(story._closing(trainer)) == []
    story.next_commands = lambda folder, checkpoint: {}
    assert ends_with_commands(trainer)
    assert list(story._closing(trainer)) == [
        "Next       Train again: it failed silently:",
        f"             {AFTER.command}",
    ]


def test_what_follows_from_verdicts(tmp_path: Path) -> None:
    assert after_verdicts({"no failure"}, tmp_path, "silent.jsonl") == (None, "")
    step, line = after_verdicts({"silent failure", "overconfident"}, tmp_path, "silent.jsonl")
    assert step is None, "no command has started this run"
    assert line == f"Next: SFTModule(..., objective=RunnerUpMargin(pairs='{tmp_path}/silent.jsonl'))"
    run_folder = tmp_path / "a b"
    run_folder.mkdir()
    (run_folder / "config.yaml").write_text("")
    step, line = after_verdicts({"silent failure"}, run_folder, "silent.jsonl")
    assert step is not None
    assert line == f"To try next, since {step.why}:\nNext: {step.command}"
    words = shlex.split(step.command)
    assert words[:2] == ["lightning", "fit"]
    assert (Path(words[2]).resolve(), words[3:6]) == (
        (run_folder / "config.yaml").resolve(),
        ["--objective", "RunnerUpMargin", "--objective.pairs"],
    )
    assert Path(words[6]).resolve() == (run_folder / "silent.jsonl").resolve()
    step, line = after_verdicts({"too early", "overconfident"}, run_folder, "silent.jsonl", ["--max_steps", "18"])
    assert step is not None
    assert shlex.split(step.command)[-2:] == ["--max_steps", "18"]
    assert shlex.split(step.command)[:2] == ["lightning", "fit"]
    assert line == f"To try next, since {step.why}:\nNext: {step.command}"
    assert after_verdicts({"too early"}, run_folder, "silent.jsonl") == (None, ""), "nothing to make longer"
    assert after_verdicts({"too early"}, tmp_path, "silent.jsonl", ["--max_steps", "18"]) == (
        None,
        "To tell, train longer.",
    )
    step, _ = after_verdicts({"overconfident"}, run_folder, "silent.jsonl")
    assert step is not None
    assert step.command.endswith("--objective LabelSmoothing")


def test_an_undecided_verdict_is_followed_by_what_reads_more_rows(tmp_path: Path) -> None:
    options = to_watch_more(watched(32), asked_for=False)
    assert options == "--trainer.callbacks+=SilentFailureMonitor --trainer.callbacks.train_rows=128"

    def told(outcomes: set[str], model: str | None = None, watch_more: str = options) -> str:
        step, line = after_verdicts(outcomes, tmp_path, "silent.jsonl", model=model, watch_more=watch_more)
        if step is None:
            return line
        assert (step.reads, step.measured) == (True, False), "the reading before training still speaks"
        assert next_steps_of(run(step, BEFORE)) == [BEFORE, step]
        assert line == (f"To try next, since {step.why}:\nNext: {step.command}" if step.command else step.why)
        return line

    plain = "To tell, watch more rows in the next run: SilentFailureMonitor(train_rows=...)."
    assert told({"no failure", "undecided"}, "base") == plain
    (tmp_path / "config.yaml").write_text("")
    why, command = told({"no failure", "undecided"}, "a base").splitlines()
    assert options in why
    assert shlex.split(command.removeprefix("Next: lightning audit ")) == [
        str(near(tmp_path)), "--before", "a base", "--after", "last", "--set", "train",
    ]  # fmt: skip
    assert told({"undecided"}).endswith(f"config.yaml {options}")
    words = "To tell, watch more rows in the next run, with train_rows of its SilentFailureMonitor above 8."
    assert told({"undecided"}, watch_more="train_rows of its SilentFailureMonitor above 8") == words
    assert told({"undecided"}, "a base", watch_more="") == "", "all training rows were watched"


def watched(rows: int, most_tokens: int | None = None, *, is_whole: bool = False) -> WatchedSet:
    ids, at = torch.arange(4), torch.tensor([2, 3])
    sample = TokenSample([SampledRow(ids, at, i) for i in range(rows)], most_tokens)
    return WatchedSet("train", sample, trained=True, is_whole=is_whole)


def test_to_watch_more_is_more_and_no_second_monitor() -> None:
    """Lightning refuses two callbacks of a kind whose state it would keep."""
    assert to_watch_more(watched(128), asked_for=False).endswith("train_rows=512")
    words = to_watch_more(watched(128), asked_for=True)
    assert words == "train_rows of its SilentFailureMonitor above 128"
    assert to_watch_more(watched(20, is_whole=True), asked_for=False) == ""
    assert to_watch_more(watched(20, is_whole=True), asked_for=True) == ""


def test_where_tokens_were_left_out_their_number_is_what_to_raise() -> None:
    """More rows would be watched by as few tokens."""
    for is_whole in (False, True):
        few = watched(20, 30, is_whole=is_whole)
        assert to_watch_more(few, asked_for=True) == "tokens of its SilentFailureMonitor above 30"
        assert to_watch_more(few, asked_for=False).endswith("--trainer.callbacks.tokens=128")


def test_most_tokens_still_outranked_lets_the_run_go_on(tmp_path: Path) -> None:
    longer = ["--max_steps", "18"]
    words = (None, "To get the right words ahead, train longer or at a higher learning rate.")
    assert after_verdicts({"still outranked"}, tmp_path, "silent.jsonl", longer) == words, "no command has started it"
    (tmp_path / "config.yaml").write_text("")
    assert after_verdicts({"still outranked"}, tmp_path, "silent.jsonl") == (NextStep(words[1], "", True), words[1])
    step, line = after_verdicts({"still outranked", "overconfident"}, tmp_path, "silent.jsonl", longer)
    assert step is not None
    assert shlex.split(step.command) == ["lightning", "fit", str(near(tmp_path)), *longer]
    assert line == f"To try next, since {step.why}:\nNext: {step.command}"
    assert next_steps_of(run(BEFORE, step)) == [step, BEFORE], "the trained model's word comes first"
    worse = after_verdicts({"still outranked"}, tmp_path, "silent.jsonl", longer, loss_rose=True)
    why = "The loss of the training rows rose: train again at a lower learning rate."
    assert worse == (NextStep(why, "", measured=True), why)


def test_all_that_is_suggested_stands_in_the_list_that_closes_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_sft.callbacks.run_story.run_folder", lambda trainer: None)
    read = NextStep("few rows were watched", "lightning audit RUN", measured=False, reads=True)
    story, trainer = RunStory(), run(read, BEFORE)
    story.next_commands = lambda folder, checkpoint: {}
    assert list(story._closing(trainer)) == [
        "Next       Read more rows: few rows were watched:",
        "             lightning audit RUN",
        "           Train again: it knew the task:",
        f"             {BEFORE.command}",
    ]
    assert list(story._closing(run(NextStep("Train at a lower rate.", "", measured=True)))) == [
        "Next       Train at a lower rate."
    ]


@pytest.mark.parametrize(("exact", "nll", "asks"), [(3, 0.5, True), (12, 0.5, False), (3, 5.0, False)])
def test_where_nothing_failed_and_few_answers_are_exact_the_run_goes_on(
    exact: int, nll: float, asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("")
    monkeypatch.setattr("lightning_sft.callbacks.next_step.run_folder", lambda trainer: tmp_path)
    monkeypatch.setattr("lightning_sft.callbacks.next_step.longer", lambda trainer: ["--max_steps", "18"])

    def reading(nll: float, exact: int) -> CapabilityReading:
        tokens = torch.zeros(20, 8, dtype=torch.float64)
        tokens[:, 0], tokens[:, 4] = -nll, torch.arange(20)
        tokens[:, 7] = torch.where(torch.arange(20) < exact, EXACT, WRONG)
        return read_capability(TokenTable.from_matrix(tokens))

    trainer = run(BEFORE)
    trainer.callbacks.append(SimpleNamespace(start=reading(2.0, 0), end=reading(nll, exact)))
    found = next_steps_of(trainer)
    assert found[-1] == BEFORE
    assert (len(found) == 2) is asks
    if asks:
        assert found[0].why == "3 of 20 training answers are exact so far"
        assert shlex.split(found[0].command) == ["lightning", "fit", str(near(tmp_path)), "--max_steps", "18"]
    trainer.callbacks.append(SimpleNamespace(next_step=AFTER))
    assert next_steps_of(trainer) == [AFTER]


def test_single_runs_of_a_comparison_give_no_advice_of_their_own() -> None:
    from lightning_sft.cli.compare.readings import Readings

    assert ends_with_commands(SimpleNamespace(callbacks=[Readings(None)]))
    assert not ends_with_commands(SimpleNamespace(callbacks=[]))
