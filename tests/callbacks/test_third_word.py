"""A third word takes the competitor's place: the loss falls far, nothing is right, and that is not called fine."""

import json
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_sft.cli.entry import main
from lightning_sft.probes import load_probes
from lightning_sft.report.run import open_runs
from lightning_sft.report.sentences import in_short
from tests.callbacks.bigrams import Plant, planted_run, save_planted, table_of, whole_monitor
from tests.fitting import trainer

#: after "d" the right letter is "a": first "b" is ahead of it, then "c"; after "e" it is "a" from the start
BEFORE = table_of({"d": {"a": 0.0, "b": 8.0}, "e": {"a": 8.0}})
AFTER = table_of({"d": {"a": 6.0, "c": 6.5}, "e": {"a": 8.0}})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, and rows whose answers hold the right letters."""
    place = tmp_path_factory.mktemp("third")
    save_planted(place / "before", BEFORE)
    save_planted(place / "after", AFTER)
    rows = [{"prompt": f"row {i:02d}: ", "completion": "daea" + "da" * (i % 3)} for i in range(24)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_the_run_s_verdict_says_still_outranked(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, data = planted_run(place / "before", place / "rows.jsonl")
    monitor, logger = whole_monitor(), TensorBoardLogger(tmp_path, name="run", version="one")
    fit = trainer(max_epochs=3, logger=logger, callbacks=[monitor, Plant(table=AFTER)])
    fit.fit(module, data)
    shares = {name: float(fit.callback_metrics[f"silent/train/{name}"]) for name in ("share", "displaced", "flipped")}
    assert shares == {"share": 0, "displaced": 1, "flipped": 0}
    assert float(fit.callback_metrics["silent/train/unlearned"]) == 0
    verdict = monitor.verdicts["train"]
    assert (verdict.outcome, verdict.failed) == ("still outranked", True)
    assert "100.0% have such a loss and are behind another word than at the start" in verdict.sentence
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("SilentFailureMonitor: STILL OUTRANKED on the training tokens; ")

    file = tmp_path / "run" / "one" / "silent.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    reading = next(s for s in monitor.watched if s.name == "train").reading(0.1)
    assert reading is not None
    assert sum(line["set"] == "train" for line in lines) == reading.still_behind == reading.behind == 48
    assert {(x["correct"], x["competitor_start"], x["competitor"]) for x in lines} == {("a", "b", "c")}
    ids = module.tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    assert all([x["correct_id"], x["competitor_start_id"], x["competitor_id"]] == ids for x in lines)
    assert len(load_probes(file)) == len(lines), "probes, with what was seen beside them"
    (said,) = [line for line in in_short(open_runs([str(tmp_path / "run" / "one")])[0]) if "outranked" in line]
    assert said == verdict.sentence


def test_the_audit_says_still_outranked_and_shows_the_tokens(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [f"--before={place / 'before'}", f"--after={place / 'after'}", f"--data={place / 'rows.jsonl'}"]
    main(["audit", *pair, "--trained=yes", "--guard=none", "--device=cpu", "--output=out"])
    found, page = json.loads(Path("out/audit.json").read_text()), Path("out/audit.md").read_text()
    silent = found["silent"]
    assert silent["nll_before"] - silent["nll"] > 1, "nats, of all tokens"
    assert (silent["share"], silent["displaced"], silent["flipped"]) == (0, 1, 0)
    (verdict,) = found["verdicts"]
    assert verdict["outcome"] == "still outranked"
    said = capsys.readouterr().out
    assert said.startswith(
        "Still outranked: the loss fell, but 48 of 48 tokens that were outranked before still are, 100.0% behind "
        "another word than before (24 rows, "
    )
    assert "Fine" not in said
    assert "No silent failure" not in page
    assert "| loss lower by more than 0.1 nats, behind another word than before | 100.0% | of 48 |" in page
    assert "Most right words are not the first choice yet" in said
    assert "| `a` | `b` | `c` |" in page
    lines = [json.loads(line) for line in Path("out/contexts.jsonl").read_text().splitlines()]
    assert {(x["correct"], x["competitor_start"], x["competitor"]) for x in lines} == {("a", "b", "c")}
    assert len(lines) == 48
