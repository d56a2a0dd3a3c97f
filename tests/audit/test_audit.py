"""Audits of models that others tuned, against an independent computation, and everything that cannot be audited."""

import copy
import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError
from lightning_sft.models.finished import FinishedModel, FoundModel
from tests.audit.pairs import (
    calibration_error,
    encoded,
    exact_answers,
    expected_numbers,
    guard_numbers,
    said,
    tuned_adapter,
    tuned_folder,
    write_rows,
)
from tests.export.runs import train
from tests.models.test_finished import merged_by_hand
from tests.toys import save_toy

# peft 0.21 warns of adapters beside tied embeddings, and asks transformers for an old name
pytestmark = [
    pytest.mark.filterwarnings("ignore:`loftq_config` specified"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
]
TEXTS = ["The river runs to the sea.", "Bread is made of flour and water.", "Snow fell on the hills."]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a folder and an adapter tuned from it, the rows, a guard set and probes."""
    place = tmp_path_factory.mktemp("pair")
    save_toy(place / "random")
    write_rows(place / "old.jsonl", shift=0)
    tuned_folder(place / "random", place / "old.jsonl", place / "base", steps=120, lr=3e-3)
    write_rows(place / "rows.jsonl", shift=1)
    tuned_folder(place / "base", place / "rows.jsonl", place / "tuned")
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        tuned_adapter(place / "base", place / "rows.jsonl", place / "adapter")
    (place / "guard.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    probes = [{"context": "colour", "correct": c, "competitor": s, "leading_space": False} for c, s in ("ab", "rt")]
    (place / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in probes))
    return place


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run of the command line."""
    return train(tmp_path_factory.mktemp("run"), "tied")


def run(place: Path, *arguments: str, output: str = "out") -> dict[str, Any]:
    """Audit as the command line does, and return the JSON."""
    rows = f"--data={place / 'rows.jsonl'}"
    main(["audit", rows, f"--guard={place / 'guard.txt'}", f"--output={output}", "--device=cpu", *arguments])
    return json.loads(Path(output, "audit.json").read_text())


def load(place: Path, name: str) -> torch.nn.Module:
    if name == "adapter":
        model = AutoModelForCausalLM.from_pretrained(place / "base")
        return peft.PeftModel.from_pretrained(model, place / "adapter")
    return AutoModelForCausalLM.from_pretrained(place / name)


@pytest.mark.parametrize(("name", "together"), [("tuned", False), ("adapter", False), ("adapter", True)])
def test_figures_are_those_of_an_independent_computation(name: str, together: bool, place: Path) -> None:
    found = run(place, f"--before={place / 'base'}", f"--after={place / name}", f"--together={together}")
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    rows = encoded(place / "rows.jsonl", tokenizer)
    before, now = said(load(place, "base"), rows), said(load(place, name), rows)
    expected = expected_numbers(before, now)
    assert 0 < expected["share"] < 1
    assert 0 < expected["flipped"] < 1
    for key, value in expected.items():
        assert found["silent"][key] == pytest.approx(value, abs=1e-4), key
    for model, columns in (("before", before), ("after", now)):
        assert found[model]["calibration"] == pytest.approx(calibration_error(columns), abs=1e-4)
        assert found[model]["exact"] == pytest.approx(exact_answers(columns), abs=1e-9)
    guard = guard_numbers(load(place, "base"), load(place, name), tokenizer, TEXTS)
    assert guard["kl"] > 0.01
    for key, value in guard.items():
        assert found["forgetting"][key] == pytest.approx(value, abs=1e-4), key
    change, low, high = found["nll_change"]
    assert change == pytest.approx(expected["nll"] - expected["nll_before"], abs=1e-4)
    assert low < change < high < 0
    worst = found["contexts"][0]
    ids, _ = rows[worst["row"]]
    assert worst["context_ids"] == ids[: len(worst["context_ids"])]
    assert ids[len(worst["context_ids"])] == worst["correct_id"]
    failed = (before["best"] != before["target"]) & (now["best"] != now["target"])
    learned = failed & (now["logp"] - before["logp"] > 0.1)
    failed = learned & (before["other"] == now["other"])
    assert len(found["contexts"]) == learned.sum()
    same = [context["competitor_start_id"] == context["competitor_id"] for context in found["contexts"]]
    assert sum(same) == failed.sum()
    weight = AutoModelForCausalLM.from_pretrained(place / "base").get_input_embeddings().weight.detach()
    cosines = torch.nn.functional.cosine_similarity(weight[now["target"]], weight[before["other"]]).numpy()
    words = [~np.isin(ids, tokenizer.all_special_ids) for ids in (now["target"], before["other"])]
    near = (before["best"] != before["target"]) & (cosines >= 0.5) & words[0] & words[1]
    ends = found["special"]
    assert (ends["ends"], ends["texts"]) == (True, [tokenizer.eos_token])
    for part, mask in (("special", ~words[0]), ("words", words[0])):
        was, wrong = before["best"][mask] != before["target"][mask], failed[mask].sum()
        assert (ends[part]["tokens"], ends[part]["behind"]) == (mask.sum(), was.sum())
        assert ends[part]["share"] == (pytest.approx(wrong / was.sum()) if was.any() else None)
    assert (found["synonyms"] or {"behind": 0})["behind"] == near.sum()


def test_a_checkpoint_of_ours(place: Path, lora_run: Path) -> None:
    base = lora_run.parents[3] / "model"
    found = run(place, f"--before={base}", f"--after={lora_run}")
    rows = encoded(place / "rows.jsonl", AutoTokenizer.from_pretrained(base))
    before = said(AutoModelForCausalLM.from_pretrained(base), rows)
    now = said(merged_by_hand(lora_run, base), rows)
    for key, value in expected_numbers(before, now).items():
        assert found["silent"][key] == pytest.approx(value, abs=1e-4, nan_ok=True), key
    assert (found["after"]["base"], found["after"]["step"]) == (str(base), 4)


def test_a_runs_folder_means_a_checkpoint_of_it(
    place: Path, lora_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str, **given: object) -> None:
        raise UserError(f"found {name}")

    monkeypatch.setattr("lightning_sft.cli.audit.find_finished", found)
    with pytest.raises(SystemExit):
        main(["audit", f"--after={lora_run.parents[1]}", f"--data={place / 'rows.jsonl'}"])
    assert f"found {lora_run.parent}/" in capsys.readouterr().err


def test_a_runs_own_configuration(lora_run: Path) -> None:
    config, base = lora_run.parents[1] / "config.yaml", lora_run.parents[3] / "model"
    newer = config.parents[1] / "version_1" / "checkpoints" / "last.ckpt"
    newer.parent.mkdir(parents=True)
    newer.write_bytes(b"of another run")
    pair = [f"--before={base}", "--after=last", "--guard=null", "--device=cpu", "--output=out"]
    main(["audit", str(config.parent), *pair])
    found = json.loads(Path("out/audit.json").read_text())
    assert (found["set"], found["rows"], found["trained"], found["after"]["step"]) == ("val", 4, "no", 4)
    summary = torch.load(lora_run, weights_only=True)["callbacks"]["RunSummary"]
    assert found["silent"]["nll"] == pytest.approx(summary["after"]["val/nll"], abs=1e-4)
    assert found["silent"]["outranked"] == pytest.approx(1 - summary["after"]["val/token_accuracy"], abs=1e-6)


def order_by_hand(model: torch.nn.Module, rows: torch.Tensor, probe: dict[str, Any], tokenizer: Any) -> float:
    """Phi by its definition in float64, with the answers' overlaps taken from ``rows``."""
    ids = tokenizer(probe["context"]).input_ids
    c, s = (tokenizer(probe[name]).input_ids[0] for name in ("correct", "competitor"))
    with torch.no_grad():
        p = model.double()(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    return float((p * ((unit @ unit[c]) ** 2 - (unit @ unit[s]) ** 2)).sum())


@pytest.mark.parametrize(("name", "together"), [("tuned", False), ("tuned", True), ("adapter", False)])
def test_probes_have_an_order_parameter_before_and_after(name: str, together: bool, place: Path) -> None:
    probes = f"--probes={place / 'probes.jsonl'}"
    found = run(place, f"--before={place / 'base'}", f"--after={place / name}", probes, f"--together={together}")
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    base, now = load(place, "base"), load(place, name)
    causal_lm = now.get_base_model() if name == "adapter" else now
    then, moved = (m.get_input_embeddings().weight.detach().clone() for m in (base, causal_lm))
    # the present hidden states under the earlier rows
    kept = copy.deepcopy(causal_lm)
    kept.lm_head.weight = torch.nn.Parameter(then.clone())
    for outcome in found["probes"]:
        before, after = (
            order_by_hand(m, rows, outcome["probe"], tokenizer) for m, rows in ((base, then), (now, moved))
        )
        assert outcome["before"]["phi"] == pytest.approx(before, abs=1e-4)
        assert outcome["after"]["phi"] == pytest.approx(after, abs=1e-4)
        assert outcome["verdict"]["outcome"] != "stopped early"
        if name == "adapter":
            assert outcome["embeddings_share"] == outcome["cause_share"] == 0
            continue
        middle = order_by_hand(kept, then, outcome["probe"], tokenizer)
        hidden, embeddings = abs(middle - before), abs(after - middle)
        assert outcome["cause_share"] == pytest.approx(embeddings / (hidden + embeddings), abs=1e-3)
        assert outcome["cause_share"] > 0.01
    assert "`a-b`" in Path("out/audit.md").read_text()


def test_contexts_are_probes_and_a_model_names_competitors(place: Path) -> None:
    pair = f"--before={place / 'base'}", f"--after={place / 'tuned'}"
    found = run(place, *pair)
    again = run(place, *pair, "--probes=out/contexts.jsonl", output="again")
    assert [o["verdict"]["outcome"] for o in again["probes"]] == ["failed"] * len(found["contexts"])
    for context, outcome in zip(found["contexts"], again["probes"], strict=True):
        assert outcome["after"]["p_correct"] == pytest.approx(context["p_correct"], abs=1e-5)
        if context["competitor_start_id"] == context["competitor_id"]:
            assert outcome["before"]["p_competitor"] == pytest.approx(context["p_competitor_start"], abs=1e-5)
    open_lines = [
        {**json.loads(line), "competitor": "auto"} for line in Path("out/contexts.jsonl").read_text().splitlines()
    ]
    for line in open_lines:
        del line["competitor_id"]
    Path("open.jsonl").write_text("".join(json.dumps(line) + "\n" for line in open_lines))
    named = run(place, *pair, "--probes=open.jsonl", output="named")
    # the same competitor in both models, as all of these failed silently
    for one, other in zip(again["probes"], named["probes"], strict=True):
        assert other["after"] == pytest.approx(one["after"], abs=1e-6)


@pytest.mark.parametrize("together", [False, True])
def test_one_model_is_in_memory_at_a_time(together: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []
    load_it = FoundModel.load

    def counted(self: FoundModel, device: str | None = None) -> FinishedModel:
        gc.collect()
        alive.append(sum(model() is not None for model in made))
        found = load_it(self, device)
        made.append(weakref.ref(found.scorer))
        return found

    monkeypatch.setattr(FoundModel, "load", counted)
    probes = f"--probes={place / 'probes.jsonl'}"
    run(place, f"--before={place / 'base'}", f"--after={place / 'tuned'}", probes, f"--together={together}")
    assert alive == [0, int(together)]


def test_one_model_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(place, f"--after={place / 'tuned'}", f"--probes={place / 'probes.jsonl'}")
    now = said(load(place, "tuned"), encoded(place / "rows.jsonl", AutoTokenizer.from_pretrained(place / "base")))
    outranked = (now["best"] != now["target"]).mean()
    assert found["silent"]["outranked"] == pytest.approx(outranked, abs=1e-9)
    assert found["silent"]["excess"] == pytest.approx(outranked - (1 - np.exp(now["top"])).mean(), abs=1e-4)
    assert found["before"] is found["silent"]["share"] is found["forgetting"]["kl"] is None
    assert found["probes"][0]["before"] is None
    page = Path("out/audit.md").read_text()
    assert "before" not in page.split("## Words used here")[0].replace("before the word", "")
    said_there = capsys.readouterr().out
    assert page.split("**")[1] == said_there.splitlines()[0]
    assert "Page       out/audit.html" in said_there


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--before={place}/base", "--fail-above=0.99"], 0),
        (["--before={place}/base", "--fail-above", "0.1"], 3),
        (["--fail_above=0.9"], 0),
        (["--fail_above=0"], 0),  # this model's excess is negative
    ],
)
def test_exit_status(arguments: list[str], status: int, place: Path) -> None:
    given = [argument.format(place=place) for argument in arguments]
    if not status:
        run(place, f"--after={place / 'tuned'}", *given)
        return
    with pytest.raises(SystemExit) as ended:
        run(place, f"--after={place / 'tuned'}", *given)
    assert ended.value.code == status
    assert Path("out/audit.html").is_file()  # the page says why


@pytest.mark.filterwarnings("ignore:The fused head cannot serve this model")
def test_scores_that_are_not_finite_are_above_any_bound(place: Path, tmp_path: Path) -> None:
    model = load(place, "tuned")
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "nan")
    AutoTokenizer.from_pretrained(place / "base").save_pretrained(tmp_path / "nan")
    with pytest.raises(SystemExit) as ended:
        run(place, f"--before={place / 'base'}", f"--after={tmp_path / 'nan'}", "--fail-above=1")
    assert ended.value.code == 3
    assert "scores are not finite" in Path("out/audit.md").read_text()


def test_the_data_settings_of_a_run(place: Path) -> None:
    Path("run.yaml").write_text(
        f"model: {{model_name_or_path: {place / 'base'}}}\n"
        f"data:\n  train: [{place / 'rows.jsonl'}, {place / 'old.jsonl'}]\n  val_split: 4\n  train_on: all\n"
        "trainer: {max_steps: 3}\n"
    )
    pair = [f"--before={place / 'base'}", f"--after={place / 'tuned'}", "--guard=none", "--device=cpu"]
    found = {}
    for chosen in ("val", "train"):
        main(["audit", "--config=run.yaml", *pair, f"--set={chosen}", f"--output={chosen}"])
        found[chosen] = json.loads(Path(chosen, "audit.json").read_text())
    assert (found["val"]["rows"], found["val"]["trained"]) == (4, "no")
    assert (found["train"]["rows"], found["train"]["trained"]) == (28, "yes")
    assert len(found["train"]["verdicts"]) == 1
    assert set(found["train"]["sources"]) == {"rows", "old"}
    assert sum(s["tokens"] for s in found["train"]["sources"].values()) == found["train"]["silent"]["tokens"]
    assert found["train"]["silent"]["tokens"] > 28 * 15  # everything is looked at, as the run trained it


def test_some_rows_spread_evenly(place: Path) -> None:
    found = run(place, f"--after={place / 'tuned'}", "--rows=4", "--top=3", "--guard=none")
    assert (found["rows"], found["total_rows"]) == (4, 16)
    assert {context["row"] for context in found["contexts"]} <= {0, 5, 10, 15}
    assert "4 of 16 rows, spread evenly" in Path("out/audit.md").read_text()


def other_template(place: Path, folder: Path, template: str | None) -> Path:
    shutil.copytree(place / "tuned", folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    return folder


PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"


def test_different_chat_templates(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = other_template(place, tmp_path / "other", PLAIN)
    pair = [f"--before={place / 'base'}", f"--after={other}", "--guard=none"]
    assert "different chat templates" in refused(place, capsys, *pair)
    counts = {}
    for chosen in ("before", "after"):
        run(place, *pair, f"--chat-template={chosen}", output=chosen)
        page = Path(chosen, "audit.md").read_text()
        assert f"Chat template: that of the model {chosen}" in page
        assert "was taken from: turns found in the template's text (16 rows)" in page
        counts[chosen] = json.loads(Path(chosen, "audit.json").read_text())["silent"]["nll"]
    assert counts["before"] != counts["after"]
    (tmp_path / "plain.jinja").write_text(PLAIN)
    given = run(place, *pair, f"--chat_template={tmp_path / 'plain.jinja'}", output="given")
    assert given["silent"]["nll"] == counts["after"]


def test_a_template_that_only_one_model_has(place: Path, tmp_path: Path) -> None:
    bare = other_template(place, tmp_path / "bare", None)
    found = run(place, f"--before={bare}", f"--after={place / 'tuned'}", "--guard=none")
    assert found["template"] == "that of the model after"
    assert found["silent"]["nll"] == found["silent"]["nll_before"]


def refused(place: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message with which an audit refuses, with exit status 2 and nothing written."""
    with pytest.raises(SystemExit) as ended:
        run(place, *arguments, output="refused")
    assert ended.value.code == 2
    assert not Path("refused").exists()
    return capsys.readouterr().err


def test_different_vocabularies(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(place / "tuned", other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    pair = f"--before={place / 'base'}", f"--after={other}"
    assert "different vocabularies: 2 of 259 tokens differ in their ids, such as 'a'" in refused(place, capsys, *pair)


def test_tokens_that_were_added_after_the_first_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(place / "tuned"), load(place, "tuned")
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<|{i}|>" for i in range(8)]})
    tokenizer.chat_template = PLAIN.replace(": ", "<|7|>")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "grown")
    tokenizer.save_pretrained(tmp_path / "grown")
    pair = f"--before={place / 'base'}", f"--after={tmp_path / 'grown'}"
    found = run(place, *pair, "--chat-template=before")
    assert "8 tokens are known to the model after alone, such as '<|0|>'" in found["notes"][0]
    assert found["forgetting"]["kl"] >= 0
    message = refused(place, capsys, *pair, "--chat-template=after")
    assert "The rows hold tokens that" in message
    assert "'<|7|>'" in message


def test_a_folder_without_a_tokenizer(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(place, "tuned").save_pretrained(tmp_path / "bare")
    bare = f"--after={tmp_path / 'bare'}"
    assert "--tokenizer" in refused(place, capsys, bare)
    assert run(place, bare, f"--tokenizer={place / 'base'}", "--guard=none")["silent"]["tokens"] == 80


def test_tokens_that_are_not_trained_towards_do_not_count(place: Path) -> None:
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    for row in rows[:6]:
        row["weight"] = -1.0
    Path("weighted.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(place, f"--after={place / 'tuned'}", "--data=weighted.jsonl", "--guard=none", "--top=1000")
    assert found["silent"]["rows"] == 10
    assert min(context["row"] for context in found["contexts"]) >= 6


def test_the_wrong_way_round(place: Path, lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(place, capsys, f"--before={place / 'adapter'}", f"--after={place / 'base'}")
    assert "was made from" in message
    for step in (100, 200):
        shutil.copytree(place / "tuned", tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps({"global_step": step}))
    message = refused(place, capsys, "--before=checkpoint-200", "--after=checkpoint-100")
    assert "at step 200, which is newer than 'checkpoint-100' at step 100" in message
    for step, folder in ((300, "one run"), (20, "another")):  # its end is no later than another run's
        shutil.copytree(place / "tuned", folder)
        Path(folder, "trainer_state.json").write_text(json.dumps({"global_step": step}))
    run(place, "--before=one run", "--after=another", "--guard=none", output="two runs")
    content = torch.load(lora_run, weights_only=True)
    torch.save({**content, "global_step": 2}, tmp_path / "earlier.ckpt")
    assert "is newer than" in refused(place, capsys, f"--before={lora_run}", "--after=earlier.ckpt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--after=nowhere/at/all"], "There is no model folder"),
        (["--after={place}/adapter", "--base=gone/for/good"], "stands on 'gone/for/good', which does not exist"),
        ([], "`lightning audit` needs --after MODEL"),
        (["--after"], "--after has no value"),
        (["--after={place}/tuned", "--data=missing.jsonl"], "missing.jsonl"),
        (["--after={place}/tuned", "--data=bad.jsonl"], "no known format has the columns neither"),
        (["--after={place}/tuned", "--data=odd.jsonl", "--data.on_bad_row=skip"], "No rows are left in test"),
        (["--after={place}/tuned", "--fail-above=2"], "--fail_above is 2. Allowed: from 0 to 1 (a share)"),
        (["--after={place}/tuned", "--rows=0"], "--rows is 0. Allowed: 1 or more"),
        (["--after={place}/tuned", "--chat-template=before"], "there is no --before"),
        (["--after={place}/tuned", "--chat-template=gone.jinja"], "'gone.jinja'. Allowed: before, after"),
        (["--after={place}/tuned", "--probes=gone.yaml"], "There is no probe file"),
        (["--after={place}/tuned", "--guard=gone.txt"], "there is no such file"),
        (["--after={place}/tuned", "--set=train"], "There are no rows to read"),
        (["--after={place}/tuned", "--output=bad.jsonl"], " --output bad-2.jsonl"),
    ],
)
def test_bad_input(arguments: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.jsonl").write_text('{"neither": 1}\n')
    Path("odd.jsonl").write_text('{"prompt": "a <|im_end|> of its own", "completion": "b"}\n')
    assert message in refused(place, capsys, *(argument.format(place=place) for argument in arguments))
