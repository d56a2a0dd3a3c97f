"""End tokens, which are soon learned, carry no verdict: the model stops and writes nothing that is right."""

import json
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_sft.callbacks import SilentFailureMonitor
from lightning_sft.cli.entry import main
from lightning_sft.report.run import open_runs
from lightning_sft.report.sentences import in_short
from tests.callbacks.bigrams import Plant, planted_run, save_planted, table_of, whole_monitor
from tests.fitting import trainer
from tests.toys import toy_tokenizer

END = str(toy_tokenizer().eos_token)
#: after "d" the right letter is "a", and after "a" the answer ends; "b" is ahead of both
BEFORE = table_of({"d": {"a": 0.0, "b": 8.0}, "a": {END: 0.0, "b": 8.0}})
#: the end is learned, and "c" has taken the place of "b" before the right letter
AFTER = table_of({"d": {"a": 6.0, "c": 6.5}, "a": {END: 9.0}})
FIGURES = (
    "48 training tokens that were outranked at the start, special tokens left out, 0.0% have a loss lower by more than "
    "0.1 nats and are still behind the same competitor, 100.0% have such a loss and are behind another word than at "
    "the start, and 0.0% are the first choice now"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, and rows whose answers hold the right letter."""
    place = tmp_path_factory.mktemp("special")
    save_planted(place / "before", BEFORE)
    save_planted(place / "after", AFTER)
    rows = [{"prompt": f"row {i:02d}: ", "completion": "da"} for i in range(48)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_the_run_s_verdict_leaves_the_ends_out(place: Path, tmp_path: Path) -> None:
    module, data = planted_run(place / "before", place / "rows.jsonl")
    monitor, logger = whole_monitor(), TensorBoardLogger(tmp_path, name="run", version="one")
    fit = trainer(max_epochs=3, logger=logger, callbacks=[monitor, Plant(table=AFTER)])
    fit.fit(module, data)
    assert float(fit.callback_metrics["silent/train/flipped"]) == 0.5, "by the ends alone"
    assert float(fit.callback_metrics["silent/train/content/flipped"]) == 0
    verdict = monitor.verdicts["train"]
    assert (verdict.outcome, verdict.leaves_out, verdict.loss_rose) == ("still outranked", True, False)
    assert verdict.sentence.startswith(
        "Still outranked: the loss fell, but most right tokens that were behind at the start still are, special tokens "
        f"left out. Of {FIGURES} (mean NLL of all 96 that are not special in the 48 rows of this reading "
    )
    assert (
        "; with special tokens, such as the end of an answer, 50.0% of 96 are the first choice now, and 0.0% have a "
        "lower loss and are still behind the same competitor (mean NLL of all 144 tokens in the 48 rows"
    ) in verdict.sentence
    (said,) = [line for line in in_short(open_runs([str(tmp_path / "run" / "one")])[0]) if "outranked" in line]
    assert said == verdict.sentence


def test_the_audit_leaves_the_ends_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [f"--before={place / 'before'}", f"--after={place / 'after'}", f"--data={place / 'rows.jsonl'}"]
    common = ["--trained=yes", "--guard=none", "--device=cpu"]
    main(["audit", *pair, *common, "--output=out"])
    out, found = capsys.readouterr().out, json.loads(Path("out/audit.json").read_text())
    assert out.startswith(
        "Still outranked: the loss fell, but 48 of 48 tokens that were outranked before still are, special tokens left "
        "out, 100.0% behind another word than before (48 rows, 144 tokens)."
    )
    assert "Fine" not in out
    assert (found["silent"]["flipped"], found["special"]["words"]["flipped"]) == (0.5, 0)
    (verdict,) = found["verdicts"]
    assert verdict["outcome"] == "still outranked"
    assert verdict["sentence"].count("mean NLL of all") == 2
    assert out.count("mean NLL of all 144 tokens") == 1, "the first line of the page says it"
    with pytest.raises(SystemExit) as ended:
        main(["audit", *pair, *common, "--output=again", "--fail_above=0.5"])
    assert ended.value.code == 3
    assert "Most tokens that were outranked before still are" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [8, 100])
def test_a_run_that_learned_all_is_undecided_for_its_few_tokens_alone(place: Path, tmp_path: Path, rows: int) -> None:
    """Of 8 watched rows no share of 10% can be ruled out; more are asked for only where there are more."""
    learned = table_of({"d": {"a": 9.0}, "a": {END: 9.0}})
    module, data = planted_run(place / "before", place / "rows.jsonl")
    monitor = SilentFailureMonitor(train_rows=rows)
    trainer(max_epochs=3, callbacks=[monitor, Plant(table=learned)]).fit(module, data)
    verdict = monitor.verdicts["train"]
    if rows == 100:
        assert verdict.outcome == "no failure"
        return
    assert verdict.outcome == "undecided"
    few = "Undecided: nothing is behind any more, but 16 tokens are too few to rule out 10%."
    assert verdict.sentence.startswith(f"{few} Watch more rows (train_rows of SilentFailureMonitor, here 8). Of 16 ")
    lines = (place / "rows.jsonl").read_text().splitlines()[:8]
    (tmp_path / "few.jsonl").write_text("\n".join(lines))
    module, data = planted_run(place / "before", tmp_path / "few.jsonl")
    trainer(max_epochs=3, callbacks=[monitor, Plant(table=learned)]).fit(module, data)
    assert monitor.verdicts["train"].sentence.startswith(f"{few} These are all training rows. Of 16 ")
    cut = SilentFailureMonitor(train_rows=100, tokens=48)
    module, data = planted_run(place / "before", place / "rows.jsonl")
    trainer(max_epochs=3, callbacks=[cut, Plant(table=learned)]).fit(module, data)
    assert "Watch more rows (tokens of SilentFailureMonitor, here 48)." in cut.verdicts["train"].sentence
