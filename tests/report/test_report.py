"""The page about runs: what it says, what it leaves out, and that it needs nothing but itself."""

import json
import math
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError
from lightning_sft.report import page
from lightning_sft.report.charts import MOST_POINTS, Series, curves, thinned
from lightning_sft.report.differences import settings_of
from lightning_sft.report.events import read_logs
from lightning_sft.report.page import drawing_script, render
from lightning_sft.report.run import open_runs
from lightning_sft.report.sentences import in_short
from lightning_sft.report.tables import before_a_word, one_line, rows_of, without_what_all_share, word
from lightning_sft.report.words import signed
from tests.running import run, run_folder, toy_arguments, write_rows

CONFIG = """
model:
  model_name_or_path: a/model
  objective: {class_path: lightning_sft.objectives.%s, init_args: {}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 0.001}}
trainer: {max_steps: 10, logger: {class_path: x, init_args: {version: %s}}}
"""
GROUP = {
    "mean_p": 0.2, "mean_p_interval": [0.15, 0.25],
    "p_histogram": {"edges": [0.0, 0.5, 1.0], "counts": [3, 1]},
}  # fmt: skip
NASTY = "a | b <script>alert(1)</script> \\ c\nnext"


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the script that draws, which takes seconds to make."""
    monkeypatch.setattr(page, "drawing_script", lambda: "")


def make_run(folder: Path, objective: str = "NLL", last: int = 10, parts: bool = True) -> Path:
    """A run's folder, written by hand."""
    writer = SummaryWriter(str(folder))
    for step in range(1, last + 1):
        writer.add_scalar("train/nll", 3 / step, step)
    for step, nll in ((0, 3.0), (last, 0.5)):
        writer.add_scalar("val/nll", nll, step)
        writer.add_scalar("val/loss", nll, step)
        writer.add_scalar("val/perplexity", 1e5 if step == 0 else 1.6, step)
        writer.add_scalar("val/exact_match", step / 20, step)
    writer.add_scalar("perf/tokens_per_second", 100.0, last)
    (folder / "config.yaml").write_text(CONFIG % (objective, folder.name))
    if parts:
        escaped = NASTY.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", "<br>")
        table = f"| prompt | reference | answer | score |\n| --- | --- | --- | --- |\n| {escaped} | 4 | %s | 1.00 |"
        writer.add_text("val/samples", table % "three", 0)
        counts = "| set | what | value |\n| --- | --- | --- |\n| train | trained_share | 0.0624 |"
        writer.add_text("data/report", f"{counts}\n| train | leaked_dropped | 2 |", last)
        writer.add_text("val/samples", table % "four", last)
        writer.add_text("silent/verdict", "Silent failure: of 9 tokens.\nNext: lightning fit --config c.yaml", last)
        writer.add_scalar("drift/general/kl", 0.1, last)
        context = {"context": NASTY, "correct": " right", "competitor": "\n", "p_correct": 0.1, "p_competitor": 0.6,
                   "nll_start": 5.0, "nll": 2.3, "set": "train", "source": None, "row": 3}  # fmt: skip
        (folder / "silent.jsonl").write_text(json.dumps(context) + "\n")
        cut_offs = {"weak": 0.1, "strong": 0.7}
        whole = {**GROUP, "mean_p": 0.3, "mean_p_interval": [0.25, 0.35]}  # with special tokens
        start = {"all": whole, "content": GROUP, "cut_offs": cut_offs}
        advice = {"headline": "It half knows it.", "why": ["Because."], "command": "lightning fit --config CONFIG",
                  "try_first": [{"class_path": "x.PowerFamily", "init_args": {"alpha": 0.5}}], "avoid": []}  # fmt: skip
        (folder / "capability.json").write_text(json.dumps({"start": start, "end": start, "advice": advice}))
        (folder / "sweep").mkdir()
        result = {"reads": "training loss", "rates": [1e-4, 1e-3, 1e-2], "losses": [3.0, None, 9.0], "choice": "valley",
                  "smoothed": [3.0, 2.0, 9.0], "text": "`valley` is taken.",
                  "suggestions": {"steepest": 1e-3, "minimum_tenth": 2e-3, "valley": 5e-4, "edge": None}}  # fmt: skip
        (folder / "sweep/rate.json").write_text(json.dumps(result))
        trial = {"lr": 0.1, "share": 1.0, "crossed": True}
        found = {"status": "found", "criterion": "rank flip", "steps_allowed": 5, "lower": 0.05, "upper": 0.1,
                 "trials": [trial], "text": "Critical rate 0.1."}  # fmt: skip
        (folder / "sweep/critical.json").write_text(json.dumps(found))
        estimate = {"lr": 0.08, "low": 0.07, "high": 0.09}
        (folder / "sweep/critical.prediction.1a.json").write_text(json.dumps({"together": {"estimate": estimate}}))
        (folder / "sweep/critical.trials.json").write_text("[]")
    writer.close()
    return folder


class Texts(HTMLParser):
    """Visible text, titles of sections, and everything that a browser would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.headings, self.fetched = "", [], []
        self._tag = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.fetched += [v for k, v in attrs if k in ("src", "href", "data", "action") and not str(v).startswith("#")]

    def handle_data(self, data: str) -> None:
        if self._tag not in ("script", "style"):
            self.text += data
        if self._tag == "h2" and data.strip():
            self.headings.append(data)


def specs(html: str) -> list[dict]:
    return json.loads(re.search(r'id="specs">(.*?)</script>', html)[1])


def test_a_whole_run(tmp_path: Path, fast: None) -> None:
    html = render(open_runs([str(make_run(tmp_path / "run"))]))
    seen = Texts(html)
    assert seen.headings == ["In short", "Before and after", "Capability", "Silent failure", "Drift", "Learning rate",
                             "Samples", "Data", "Speed and memory", "Settings"]  # fmt: skip
    for said in (
        "a/model was trained under NLL for 10 steps at a learning rate of 0.001: held-out NLL fell from 3 to 0.5 nats",
        "answers that are exactly right rose from 0.0% to 50.0%",
        "mean probability of 0.200 (95% interval 0.150 to 0.250). It half knows it.",
        "Silent failure: of 9 tokens.",
        "PowerFamily(alpha=0.5)",
        "three (score 1.00)",
        "four (score 1.00)",
        "a | b <script>alert(1)</script> \\ c \u21b5 next",  # as text, and not as a script
        "\u2423right",
        "Critical rate 0.1.",
    ):
        assert said in seen.text, said
    assert re.search(r"(?<!trained )tokens per second", seen.text) is None, "it is said which tokens are counted"
    assert "trained tokens per second" in seen.text
    assert re.search(r"trained tokens, of all\s*6\.2%", seen.text)
    assert re.search(r"of these, left out\s*2", seen.text)
    assert "From the first entry to the last: " in seen.text
    assert "loss under the objective" not in seen.text, "it is the NLL"
    assert "perplexity" not in seen.text, "it has more digits than sense"
    assert "<script>alert" not in html
    assert "lightning fit --config c.yaml" in seen.text
    assert "lightning fit --config run/config.yaml" not in seen.text, "one thing to try: what the trained model needs"
    drawn = specs(html)
    assert len(drawn) == html.count("<figure>")
    critical = json.dumps(drawn)
    assert '{"a": 0.05, "b": 0.1}' in critical, "the bracket"
    assert '{"a": 0.07, "b": 0.09}' in critical, "the prediction with its interval"
    assert '{"a": 0.0005, "b": 0.002}' in critical, "the recommended band"


def test_a_run_that_went_on_has_the_settings_of_its_last_part(tmp_path: Path, fast: None) -> None:
    folder = make_run(tmp_path / "run", last=30)
    for step, most in ((9, 12), (10, 30)):
        text = (folder / "config.yaml").read_text().replace("max_steps: 10", f"max_steps: {most}")
        (folder / f"config_resumed_at_step_{step}.yaml").write_text(text)
    capability = json.loads((folder / "capability.json").read_text())
    capability["doubts_after"] = ["The interval holds the cut-off 0.1."]
    (folder / "capability.json").write_text(json.dumps(capability))
    (run,) = open_runs([str(folder)])
    assert (run.planned, run.is_complete) == (30, True)
    settings = dict(settings_of(run))
    assert (settings["most steps"], settings["went on at step"]) == ("30", "9, 10")
    seen = Texts(render([run])).text
    assert "for 30 steps at a" in seen
    assert "After: The interval holds the cut-off 0.1." in seen


def test_a_run_that_went_on_under_another_objective_says_so(tmp_path: Path, fast: None) -> None:
    folder = make_run(tmp_path / "run", objective="DFT", last=30)
    with SummaryWriter(str(folder)) as writer:
        for step, loss in ((0, 0.9), (30, 2.3)):
            writer.add_scalar("val/loss", loss, step)
    text = (folder / "config.yaml").read_text()
    (folder / "config_resumed_at_step_10.yaml").write_text(text)
    (folder / "config_resumed_at_step_20.yaml").write_text(text.replace("DFT", "NLL"))
    (run,) = open_runs([str(folder)])
    assert run.objectives == [(0, "DFT"), (20, "NLL")]
    seen = Texts(render([run])).text
    assert "under DFT, then from step 20 on under NLL for 30 steps" in seen
    assert "another objective" in seen
    assert "+1.4" not in seen


def test_the_advice_has_its_command_where_nothing_failed(tmp_path: Path, fast: None) -> None:
    run = make_run(tmp_path / "run")
    with SummaryWriter(str(run)) as writer:
        writer.add_text("silent/verdict", "No silent failure.", 11)
    assert "lightning fit --config run/config.yaml" in Texts(render(open_runs([str(run)]))).text, "its own settings"


def test_the_third_sentence_is_what_went_wrong(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with SummaryWriter(str(run)) as writer:
        writer.add_text("silent/verdict", "No silent failure: of 9.\nOverconfident: 60% of 20.", 11)
    (one,) = open_runs([str(run)])
    assert in_short(one)[2] == "Overconfident: 60% of 20."


def test_few_answers_are_counted(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", last=4, parts=False)
    (run_,) = open_runs([str(folder)])
    for rows, said in ((5, "rose from 0 of 5 to 1 of 5; these are 5 held-out rows"), (500, "rose from 0.0% to 20.0%.")):
        run_.logs.curves["data/val_rows"] = {0: float(rows)}
        assert f"answers that are exactly right {said}" in in_short(run_)[0]
    run_.logs.curves["data/val_rows"] = {0: 6.0}  # of which some have several answers
    assert "rose from 0.0% to 20.0%; these are 6 held-out rows" in in_short(run_)[0]


def test_the_page_says_what_its_parts_are(tmp_path: Path, fast: None) -> None:
    folder = make_run(tmp_path / "run")
    config = (folder / "config.yaml").read_text()
    adapter = "  adapter: {class_path: peft.LoraConfig, init_args: {r: 8, bias: none, megatron_core: megatron.core}}\n"
    config = config.replace("  optimizer:", adapter + "  optimizer:").replace("max_steps: 10,", "max_epochs: -1,")
    (folder / "config.yaml").write_text(config)
    runs = open_runs([str(folder)])
    settings = {name: value for name, value in settings_of(runs[0])}
    assert settings["adapter"] == "LoraConfig(r=8)"
    assert settings["most epochs"] == "no limit"
    seen = Texts(render(runs)).text
    assert "mean probability of the whole answer" not in seen
    assert "Dashed: training rows." in seen
    assert "answers that the model writes" not in seen, "there is no such curve"
    assert re.search(r"To try next:\s*lightning fit --config c.yaml", seen)
    runs[0].logs.curves["val/task_accuracy"] = {0: 0.0, 10: 0.5}
    runs[0].logs.curves["val/pass_at_1"] = {0: 0.0, 10: 0.5}
    runs[0].logs.texts["silent/verdict"] = {10: "Overconfident: a.\nTo try next, since it is:\nNext: lightning fit"}
    html = render(runs)
    seen = Texts(html).text
    assert "Dashed: answers that the model writes." in seen
    assert "mean probability of the whole answer" in seen
    assert re.search(r"Overconfident: a.\s*To try next, since it is:\s*lightning fit", seen)
    several = [spec["encoding"]["color"] for spec in specs(html) if "color" in spec.get("encoding", {})]
    assert {c["legend"]["symbolType"] for c in several if c.get("legend")} == {"stroke"}, "dots cannot be dashed"


def test_what_stands_before_a_word_is_short() -> None:
    chat = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n"
    chat += "<|im_start|>assistant\nIt is"
    assert before_a_word(chat) == "Be brief. / What is 1 + 1? / It is"
    assert before_a_word(chat, 21) == "... is 1 + 1? / It is"
    assert before_a_word("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n") == "Hi / "
    assert before_a_word("<s>[INST] Hi [/INST] Well") == "Hi / Well"
    assert before_a_word("if a <b> and user a | b\nc") == "if a <b> and user a | b \u21b5 c"
    assert before_a_word("x" * 200) == "..." + "x" * 100


def test_a_change_of_nothing_has_no_minus() -> None:
    assert signed(-1e-6, "val/exact_match") == "+0.0 points"
    assert signed(-0.02, "val/exact_match") == "-2.0 points"


def test_it_opens_without_a_network_and_is_small(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in range(20_000):
            writer.add_scalar("train/lr", step, step)
    main(["report", str(tmp_path / "run")])
    file = tmp_path / "run/report.html"
    assert 500_000 < file.stat().st_size < 5_000_000
    html = file.read_text()
    assert Texts(html).fetched == []
    assert "default-src 'none'" in html
    assert "connect-src" not in html
    assert not re.search(r"@import|url\(|importScripts|import\(", html.split("<script")[0])
    assert html.count("</script>") == 2, "the script that draws ends no tag"
    assert "vegaEmbed" in drawing_script()


def test_runs_side_by_side(tmp_path: Path, fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("NLL_lr0.001_2026-03-01_12-30-00", "DFT_lr0.001_2026-03-01_12-31-00"):
        make_run(tmp_path / name, name[:3])
    html = render(open_runs(["NLL_lr0.001_2026-03-01_12-30-00", "DFT_lr0.001_2026-03-01_12-31-00/config.yaml"]))
    seen = Texts(html)
    assert "What differs between the runs" in seen.headings
    assert re.search(r"model.objective\s*NLL\s*DFT", seen.text)
    assert "trainer.logger" not in seen.text, "where a run writes is no difference"
    first = specs(html)[0]
    assert {row["s"] for row in first["data"]["values"]} == {
        f"{name}_lr0.001, {what}" for name in ("NLL", "DFT") for what in ("held out", "training")
    }
    hues = first["encoding"]["color"]["scale"]
    assert len(set(hues["range"])) == 2, "a colour a run"
    legend = first["encoding"]["color"]["legend"]
    assert legend["values"] == ["NLL_lr0.001, held out", "DFT_lr0.001, held out"], "the note says what dashes mean"
    one, three = (
        curves("NLL", "nats", [Series("a run of a long name " * 2 + str(i), [(0, 1), (1, 2)]) for i in range(n)])
        for n in (1, 3)
    )
    assert one is not None
    assert three is not None
    assert three.spec["height"] == one.spec["height"] + 40, "a legend of three lines takes nothing from the curves"
    with pytest.raises(UserError, match="twice"):
        open_runs(["NLL_lr0.001_2026-03-01_12-30-00"] * 2)


def test_missing_parts_are_left_out(tmp_path: Path, fast: None) -> None:
    folder = make_run(tmp_path / "run", parts=False)
    seen = Texts(render(open_runs([str(folder)])))
    assert seen.headings == ["In short", "Before and after", "Speed and memory", "Settings"]
    assert "was not read (callback CapabilityProbe)" in seen.text
    assert "was not watched (callback SilentFailureMonitor)" in seen.text
    for file in folder.glob("events*"):
        file.unlink()
    seen = Texts(render(open_runs([str(folder)])))
    assert "nothing was logged that says whether it learned" in seen.text
    (folder / "config.yaml").write_text("model: [unclosed")
    (folder / "capability.json").write_text('{"start": ')
    seen = Texts(render(open_runs([str(folder)])))
    assert "config.yaml cannot be read" in seen.text
    assert "capability.json cannot be read" in seen.text
    (folder / "capability.json").write_text('{"start": {"all": {"mean_p": 0.5}}, "end": null}')
    seen = Texts(render(open_runs([str(folder)])))
    assert "The part 'capability' is left out" in seen.text, "of another version"


def test_a_run_under_way_and_one_that_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (going,) = open_runs([str(make_run(tmp_path / "run", last=6, parts=False))])
    assert "for 6 of 10 steps at a learning rate of 0.001 so far, and is under way" in in_short(going)[0]
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert "6 of 10 steps at a learning rate of 0.001 and stopped early" in in_short(going)[0]


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_an_event_file_that_is_cut_off_is_read_up_to_there(tmp_path: Path, cut: int, fast: None) -> None:
    folder = make_run(tmp_path / "run", parts=False)
    (file,) = folder.glob("events*")
    whole = read_logs(folder).curve("train/nll")
    file.write_bytes(file.read_bytes()[:-cut])
    (one,) = open_runs([str(folder)])
    left = one.logs.curve("train/nll")
    assert left == whole[: len(left)]
    assert left, "what stands before the cut is there"
    assert any("ends within an entry" in problem for problem in one.problems)
    assert "ends within an entry" in Texts(render([one])).text


def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", parts=False)
    (file,) = folder.glob("events*")
    content = bytearray(file.read_bytes())
    place = content.index(b"train/nll", len(content) // 2)
    content[place : place + 8] = b"\xff" * 8
    file.write_bytes(content)
    (one,) = open_runs([str(folder)])
    assert 0 < len(one.logs.curve("train/nll")) < 10
    assert any(re.search(r"damaged: \d+ of its \d+ entries", problem) for problem in one.problems)
    assert not open_runs([str(make_run(tmp_path / "sound", parts=False))])[0].problems


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "runs/a/one", parts=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no run, but holds 1\. Give them: .*runs/a/one"):
        open_runs([str(tmp_path / "runs")])
    with pytest.raises(UserError, match="no event file of TensorBoard"):
        open_runs([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="does not exist"):
        open_runs([str(tmp_path / "nowhere")])


def test_runs_near_one_that_is_not_there_are_named(tmp_path: Path) -> None:
    for number, name in enumerate(("NLL_1", "NLL_2", "Focal_1")):
        os.utime(make_run(tmp_path / "runs" / name, parts=False), (number, number))
    with pytest.raises(UserError) as raised:
        open_runs(["runs/NLL_3"])
    said = str(raised.value)
    assert "'runs/NLL_3' does not exist. Did you mean 'runs/NLL_" in said
    assert "Runs there, newest first: runs/Focal_1, runs/NLL_2, runs/NLL_1." in said
    with pytest.raises(UserError, match="Runs there, newest first: runs/Focal_1"):
        open_runs(["nowhere"])
    with pytest.raises(UserError, match=r"does not exist\. Allowed"):
        open_runs([str(tmp_path / "runs/NLL_1/deep/er")])


def test_a_csv_logger_and_a_resumed_run(tmp_path: Path) -> None:
    (tmp_path / "metrics_before_resume_0.csv").write_text("step,val/nll,train/nll\n1,,3.0\n2,2.5,2.0\n3,,9.0\n")
    (tmp_path / "metrics.csv").write_text("step,val/nll,train/nll\n3,,1.5\n4,1.0,\n5,half")
    logs = read_logs(tmp_path)
    assert logs.curve("train/nll") == [(1, 3.0), (2, 2.0), (3, 1.5)], "what was read again counts"
    assert logs.curve("val/nll") == [(2, 2.5), (4, 1.0)]


def test_small_things() -> None:
    long = thinned([(x, float(x)) for x in range(10_000)])
    assert len(long) == MOST_POINTS
    assert (long[0], long[-1]) == ((0, 0.0), (9999, 9999.0))
    assert thinned([(1, math.nan), (2, math.inf), (3, 1.0)]) == [(3, 1.0)]
    assert curves("t", "y", [Series("a", [(1, math.nan)])]) is None
    assert rows_of("text\n| a | b |\n|---|:--:|\n| x \\| y \\\\ | |\n") == [["a", "b"], ["x | y \\", ""]]
    assert without_what_all_share(["system prompt here, say 1 thing now", "system prompt here, say 22 thing now"]) == [
        "...1 thing now", "...22 thing now"
    ]  # fmt: skip
    assert without_what_all_share(["same", "same"]) == ["same", "same"]
    assert one_line("\n a\n\n\nb") == " a \u21b5 b"
    assert [word(t) for t in (" a", "a ", "  ", "\n")] == ["\u2423a", "a\u2423", "\u2423\u2423", "\u21b5"]


def test_fit_writes_it_when_asked(toy_folder: Path, tmp_path: Path, fast: None) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    run("fit", ["--report", *toy_arguments(toy_folder, rows, trainer__max_steps=2)])
    seen = Texts((run_folder() / "report.html").read_text())
    assert "under NLL for 2 steps" in seen.text
    assert {"Before and after", "Capability", "Silent failure", "Data"} <= set(seen.headings)
    assert "report" not in (run_folder() / "config.yaml").read_text().lower()
