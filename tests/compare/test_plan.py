"""What is run next, by whom, and what a comparison then says: runs are functions here."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_sft.compare.design import Design, RunSpec
from lightning_sft.compare.ledger import FolderLedger
from lightning_sft.compare.plan import make_plan
from lightning_sft.compare.rates import RateSearch
from lightning_sft.compare.report import make_report
from lightning_sft.compare.result import RunResult
from lightning_sft.compare.words import markdown, narrow, sentence, to_json_text, width_note
from lightning_sft.compare.work import work
from lightning_sft.errors import UserError
from tests.compare.worlds import ARMS, Memory, design, world


def quiet(line: str) -> None:
    """Say nothing."""


def compared(of: Design, run: Any = None) -> tuple[Any, Memory]:
    ledger = Memory()
    plan = work(of, ledger, run or world(of), quiet)
    return make_report(of, plan, ledger.kept), ledger


def test_rates_are_found_on_replicates_that_are_not_judged_and_by_equal_trials() -> None:
    of = design()
    report, ledger = compared(of)
    assert {arm.name: arm.rate for arm in report.arms} == {"A": 1e-3, "B": pytest.approx(3.16e-4, rel=0.01), "C": 1e-3}
    assert {len(arm.search) for arm in report.arms} == {5}
    kinds = Counter(result.key.split()[0] for result in ledger.kept.values())
    assert kinds == {"search": 15, "judged": 12}
    assert not ledger.under_way
    searched = {of.draw(RunSpec("search", 0, "A", None)).seed}
    judged = {of.draw(RunSpec("judged", i, "A", None)).seed for i in range(4)}
    assert len(judged) == 4
    assert not searched & judged
    assert {of.draw(RunSpec("judged", 2, arm, None)) for arm in ARMS} == {of.draw(RunSpec("judged", 2, "A", 1.0))}


def test_the_sentence_says_who_is_ahead_by_how_much() -> None:
    report, _ = compared(design(replicates=6))
    assert report.score.key == "val/exact_match"
    said = sentence(report)
    assert re.match(r"B beats A by \d+\.\d points", said)
    assert "points of exact match [" in said
    # a t-interval of differences that are all alike has no width, and says nothing
    assert "drift of general text +0.0000 nats [the same in every replicate, so no interval; p = 1] under " in said
    assert ", +0.0000]" not in markdown(report)
    assert "; 6 replicates, " in said
    table = markdown(report)
    assert "| B | 0.000316 |" in table
    assert "2 s (500 trained tokens)" in table
    assert "| A | B | C |" in narrow(report), "an arm a column"
    assert "| arm | A |" not in table
    assert "*)" in table
    assert report.ranking[0] == "B"
    c = report.arm("C").readings["val/exact_match"].against_first
    assert c is not None
    assert c.verdict == "undecided"
    assert sentence(compared(design("B", "A"))[0]).startswith("B beats A by ")
    assert "C and A are not told apart" in sentence(compared(design("A", "C"))[0])


def test_the_sentence_names_every_arm_where_the_best_is_not_told_apart() -> None:
    """C is as good as A; D is far worse, E is C again."""
    arms = {"A": ARMS["A"], "C": ARMS["C"], "D": (ARMS["A"][0], ARMS["A"][1] - 0.4), "E": ARMS["C"]}
    for names, end in [(("A", "C", "D"), "; D is worse"), (("A", "C", "E"), " told apart from A")]:
        of = design(*names)
        said = sentence(compared(of, world(of, arms))[0])
        assert "A are not told apart" in said
        assert end in said
        assert all(f"{name} " in said for name in names)


def test_what_few_rows_and_empty_answers_look_like_is_said() -> None:
    of = design("A", "B", replicates=2)
    run = world(of)

    def poor(spec: RunSpec) -> RunResult:
        result = run(spec)
        written = 0.0 if (spec.arm, spec.replicate) == ("B", 1) else 3.0
        values = {**result.curve[-1].values, "val/mean_p": 0.9 - 0.8 * spec.replicate * (spec.arm == "B")}
        last = replace(result.curve[-1], values={**values, "val/answer_tokens": written, "val/stop_share": 1.0})
        first = replace(result.curve[0], values={**result.curve[0].values, "val/loss": 7.0})
        return replace(result, curve=(first, last), judged_rows=8)

    said: list[str] = []
    ledger = Memory()
    report = make_report(of, work(of, ledger, poor, said.append), ledger.kept)
    table = markdown(report)
    assert "each judged by 8 rows; " in table
    assert "too few to trust" not in table
    assert "6 rows to judge a replicate by: too few to trust." in markdown(replace(report, judged_rows=[6, 9]))
    assert "B: in 1 of 2 replicates its answers are empty." in table
    assert "0.500 (-0.400 [-1.000, +1.000])" in table, "two probabilities differ by 1 at most"
    assert "half of what a share can be, or more, says little" in table
    assert "[all alike]: the same difference" in table
    assert "val/loss" not in report.start, "it is of another objective in each arm"
    assert all(re.search(r"exact match \d+\.\d% over 8 rows", line) for line in said if line.startswith("["))


def test_the_record_is_strict_json() -> None:
    report, _ = compared(design("A", "B"))
    found = json.loads(to_json_text(report), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert found["ranking"] == ["B", "A"]
    assert found["arms"][1]["readings"]["val/exact_match"]["against_first"]["verdict"] == "better"
    assert len(found["arms"][1]["readings"]["val/nll"]["values"]) == 4
    assert found["arms"][1]["search"][0][0] == pytest.approx(1e-4)
    assert found["start"]["val/nll"] == pytest.approx(1.9)


def test_interrupted_anywhere_it_goes_on_and_says_the_same(tmp_path: Path) -> None:
    of = design("A", "B")
    expected = to_json_text(compared(of)[0])
    run, count = world(of), 0

    def stopping(spec: RunSpec) -> RunResult:
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise KeyboardInterrupt
        return run(spec)

    for _ in range(20):
        with FolderLedger(tmp_path).opened() as ledger:
            try:
                plan = work(of, ledger, stopping, quiet)
                break
            except KeyboardInterrupt:
                continue
    assert to_json_text(make_report(of, plan, ledger.results())) == expected
    done = count
    with FolderLedger(tmp_path).opened() as ledger:
        again = work(of, ledger, stopping, quiet)
        assert to_json_text(make_report(of, again, ledger.results())) == expected
        with pytest.raises(UserError, match="Another process"), FolderLedger(tmp_path).opened():
            pass
    assert count == done, "the same command again runs nothing"


def test_more_replicates_and_arms_keep_what_has_run(tmp_path: Path) -> None:
    small, large = design("A", "B"), design("A", "B", "C", replicates=6)
    with FolderLedger(tmp_path).opened() as ledger:
        work(small, ledger, world(small), quiet)
        before = len(ledger.results())
        work(large, ledger, world(large), quiet)
        assert len(ledger.results()) == before + 2 * 2 + 5 + 6


def test_diverged_runs_count_as_the_worst_and_are_named() -> None:
    of = design("A", "B", "D", replicates=8)
    arms = {**ARMS, "D": (1e-3, 0.75)}
    run = world(of, arms)

    def diverging(spec: RunSpec) -> RunResult:
        result = run(spec)
        bad = spec.arm == "D" and spec.kind == "judged" and spec.replicate % 4 == 1
        return replace(result, outcome="diverged") if bad else result

    report, _ = compared(of, diverging)
    d = report.arm("D")
    assert (d.diverged, d.failed) == (2, 0)
    assert d.readings["val/exact_match"].values[1] == 0.0
    nll = [report.arm(name).readings["val/nll"].values[1] for name in ("A", "B", "D")]
    assert nll[2] == max(nll[:2])
    assert report.ranking.index("D") > report.ranking.index("B")
    assert "D: 2 of 8 runs diverged and count as the worst." in markdown(report)


def test_an_arm_that_fails_everywhere_is_left_out_by_name() -> None:
    of = design("A", "B", "C")
    run = world(of)

    def failing(spec: RunSpec) -> RunResult:
        bad = spec.arm == "B"
        return RunResult(of.digest_of(spec), spec.key, "failed", "UserError: no such file") if bad else run(spec)

    report, ledger = compared(of, failing)
    assert [arm.name for arm in report.arms] == ["A", "C"]
    assert report.left_out == {"B": "UserError: no such file"}
    assert "B failed in every run and is left out: UserError: no such file" in markdown(report)
    assert sum(" B " in result.key for result in ledger.kept.values()) == 3, "it costs no more than the first grid"
    turned = design("B", "A")
    with pytest.raises(UserError, match=r"first arm, B, failed in every run.*no such file"):
        compared(turned, lambda spec: replace(failing(spec), digest=turned.digest_of(spec)))


def test_without_a_search_every_arm_keeps_its_rate() -> None:
    report, ledger = compared(design("A", "B", search=RateSearch(points=0)))
    assert len(ledger.kept) == 8
    assert "| B | its own |" in markdown(report)
    assert "those of the configuration" in markdown(report)


def test_a_key_that_runs_do_not_log_is_refused_and_one_that_some_lack_is_left_out() -> None:
    with pytest.raises(UserError, match=r"judged by val/exact_mach, which.*not log.*val/exact_match, val/nll"):
        compared(design("A", "B", select="val/exact_mach:max"))
    of = design("A", "B")
    run = world(of)

    def without(spec: RunSpec) -> RunResult:
        result = run(spec)
        if spec.kind == "search" or spec.replicate != 1 or spec.arm != "B":
            return result
        kept = {k: v for k, v in result.curve[1].values.items() if not k.startswith("drift")}
        return replace(result, curve=(result.curve[0], replace(result.curve[1], values=kept)))

    report, _ = compared(of, without)
    assert "drift/general/kl" in report.arm("A").readings
    assert "drift/general/kl" not in report.arm("B").readings
    assert "drift" not in sentence(report)


def test_what_is_selected_by_under_auto() -> None:
    of = design("A", "B")
    assert make_plan(of, {}).score.key == "val/nll"
    run = world(of)
    for change, expected in (
        ({}, "val/exact_match"),
        ({"answer_tokens": 300.0}, "val/nll"),
    ):
        report, _ = compared(of, lambda spec, change=change: replace(run(spec), **change))
        assert report.score.key == expected
    never = {name: (rate, -1.0) for name, (rate, _) in ARMS.items()}

    def wrong(spec: RunSpec) -> RunResult:
        result = world(of, never)(spec)
        points = tuple(replace(p, values={**p.values, "val/exact_match": 0.0}) for p in result.curve)
        return replace(result, curve=points)

    assert compared(of, wrong)[0].score.key == "val/nll", "an exact match that is 0 everywhere selects nothing"
    said: list[str] = []
    work(of, Memory(), wrong, said.append)
    turns = [line for line in said if "decides from here on" in line]
    assert turns == ["No run so far got an answer exactly right: NLL decides from here on."]
    assert compared(design("A", "B", select="val_nll"))[0].score.key == "val/nll", "the old names are read"
    assert compared(design("A", "B", select="drift/general/kl:min"))[0].score.higher is False


def test_few_replicates_are_called_few_with_the_number_that_a_wish_needs() -> None:
    report, _ = compared(design("A", "B", replicates=2))
    note = width_note(report, 0.01)
    assert note is not None
    assert note.startswith("Intervals are wide: 2 replicates resolve a difference of ")
    assert "one of 1.0 points of exact match needs" not in note
    assert "; one of 1.0 needs " in note
    assert width_note(compared(design("A", "B", replicates=8))[0], None) is None


def test_a_search_that_stays_at_an_end_is_said() -> None:
    of = design("A", "B", search=RateSearch(1e-8, 1e-7, 3, 0, 1))
    report, _ = compared(of)
    assert {arm.at_edge for arm in report.arms} == {"high"}
    assert "A: its best rate is the highest that was tried" in markdown(report)


def test_results_survive_the_disk(tmp_path: Path) -> None:
    of = design("A", "B")
    result = world(of)(RunSpec("search", 0, "A", 1e-3))
    lost = replace(result.curve[1], values={"val/nll": math.nan})
    with FolderLedger(tmp_path).opened() as ledger:
        ledger.keep(replace(result, curve=(result.curve[0], lost)))
    with FolderLedger(tmp_path).opened() as ledger:
        (back,) = ledger.results().values()
    assert back.curve[0] == result.curve[0]
    assert math.isnan(back.readings["val/nll"])
    (tmp_path / "runs" / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json is no result of a run.*Remove it"), FolderLedger(tmp_path).opened():
        pass


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"replicates": 1}, "an interval needs two"),
        ({"search_replicates": 0}, "1 or more for the search"),
        ({"arms": ()}, "two or more, with different names"),
    ],
)
def test_bad_designs(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(design("A", "B"), **bad)


def test_a_design_survives_json() -> None:
    of = design("A", "B", seed="9f2c")
    assert Design.of(json.loads(json.dumps(of.plain()))) == of
    assert design("A", "B", seed="1").digest != of.digest
