"""SilentFailureMonitor: planted outcomes give exact shares, however rows lie, and the run does not notice it."""

import csv
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, IterableDataset

from lightning_sft.callbacks import SilentFailureMonitor
from lightning_sft.cli.entry import main
from lightning_sft.errors import UserError
from lightning_sft.metrics.synonyms import synonym_rank
from lightning_sft.objectives import RunFacts, RunnerUpMargin
from lightning_sft.probes import encode_probes, load_probes
from lightning_sft.probes.forward import read_probes
from lightning_sft.probes.token_sample import documents_of
from tests.callbacks.bigrams import (
    Plant,
    Stranger,
    bigram_model,
    expected,
    planted_run,
    save_planted,
    tables,
    whole_monitor,
    write_planted,
)
from tests.distributed.ranks import two_ranks
from tests.fitting import batches, trainer
from tests.running import run, run_folder, toy_arguments

LAYOUTS = {
    "padded": {"layout": "padded"},
    "flat": {"layout": "flat"},
    "packed": {"order": "packed", "max_length": 40},
    "grouped": {"order": "grouped", "layout": "padded"},
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    return save_planted(folder / "model"), write_planted(folder / "rows.jsonl")


def check(values, monitor, data, name):
    want = expected(data, name)
    for key, value in want.items():
        assert float(values[f"silent/{name}/{key}"]) == pytest.approx(value, abs=1e-6), key
    reading = next(s for s in monitor.watched if s.name == name).reading(0.1)
    for key in ("outranked", "share", "flipped", "lost"):  # shares of whole numbers, to the last bit
        assert getattr(reading, key) == want[key], key


@pytest.mark.parametrize("sanity", [-1, 0], ids=["sanity", "own pass"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_planted_outcomes_give_the_exact_shares(planted, layout, sanity):
    module, data = planted_run(*planted, **LAYOUTS[layout])
    monitor = whole_monitor()
    fit = trainer(max_epochs=-1, max_steps=2, num_sanity_val_steps=sanity, callbacks=[monitor, Plant()])
    fit.fit(module, data)
    for name in ("train", "val"):
        check(fit.callback_metrics, monitor, data, name)
    want = expected(data, "train")
    assert 0 < want["share"] < 1
    assert 0 < want["flipped"] < 1
    assert 0 < want["lost"] < 1
    assert monitor.verdicts["train"].outcome == "too early", "after two of the six steps of an epoch"
    assert f"{want['share']:.1%}" in monitor.verdicts["train"].sentence
    assert module.scorer.with_competitors is False


def of_stranger(planted):
    """What the same rows give where only the answers' letters are trained, not the end."""
    _, data = planted_run(*planted)
    module = Stranger(planted[1])
    data.dataset = lambda what: [Rows(ids, prompt) for ids, prompt in module.rows]
    return expected(data, "train")


class Rows:
    def __init__(self, ids, prompt):
        self.ids = torch.tensor(ids)
        self.trained = torch.arange(len(ids)) >= prompt


def test_a_stranger_s_module_gives_the_same_from_its_own_loaders(planted, capsys):
    monitor, want = whole_monitor(), of_stranger(planted)
    fit = trainer(max_epochs=1, val_check_interval=1, callbacks=[monitor, Plant()])
    fit.fit(Stranger(planted[1]))
    for name in ("train", "val"):
        for key, value in want.items():
            assert float(fit.callback_metrics[f"silent/{name}/{key}"]) == pytest.approx(value, abs=1e-6), key
    assert monitor.verdicts["train"].outcome == "silent failure"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("SilentFailureMonitor: SILENT FAILURE on the training tokens; ")
    assert last.endswith(" that stayed behind in no file, since the run has no folder")


@pytest.mark.ranks
def test_two_ranks_count_each_token_once(planted, tmp_path):
    rows = write_planted(tmp_path / "rows.jsonl", 23)  # an odd number: one rank gets a row less
    cases = [("ours", "ddp"), ("stranger", "ddp"), ("ours", "fsdp2"), ("stranger", "fsdp2"), ("dealt", "ddp")]
    both = two_ranks("tests.callbacks.bigrams:on_ranks", tmp_path, model=str(planted[0]), rows=str(rows), cases=cases)
    assert both[0] == both[1]
    module, data = planted_run(planted[0], rows)
    trainer(max_epochs=-1, max_steps=1, callbacks=[SilentFailureMonitor(enabled=False)]).fit(module, data)
    assert both[0].pop() == {"logged": {}}, "ranks with other rows each cannot watch the same tokens"
    for (kind, strategy), found in zip(cases[:-1], both[0], strict=True):
        want = expected(data, "train") if kind == "ours" else of_stranger((planted[0], rows))
        for name in ("train", "val"):
            for key in ("outranked", "share", "flipped", "lost"):
                assert found[name][key] == want[key], (kind, strategy, name, key)
            assert found[name]["expected"] == pytest.approx(want["expected"], abs=1e-6)
            assert found["logged"][f"silent/{name}/share"] == pytest.approx(want["share"], abs=1e-6)


def test_the_worst_contexts_stand_in_the_run_folder_and_in_tensorboard(planted, tmp_path, capsys):
    module, data = planted_run(*planted)
    monitor = whole_monitor(contexts=3)
    logger = TensorBoardLogger(tmp_path, name="run", version="one")
    trainer(max_epochs=-1, max_steps=2, logger=logger, callbacks=[monitor, Plant()]).fit(module, data)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(". 6 contexts that stayed behind in run/one/silent.jsonl"), "as one types it from here"
    lines = [json.loads(x) for x in (tmp_path / "run" / "one" / "silent.jsonl").read_text().splitlines()]
    assert [line["set"] for line in lines] == ["train"] * 3 + ["val"] * 3
    tokenizer = module.tokenizer
    for line in lines:
        row = data.dataset(line["set"])[line["row"]]
        assert line["context_ids"] == row.ids[: line["position"]].tolist()
        assert line["correct_id"] == row.ids[line["position"]]
        assert (line["correct"], line["competitor"]) == ("a", "b")
        assert tokenizer.convert_ids_to_tokens([line["correct_id"], line["competitor_id"]]) == ["a", "b"]
        assert line["context"].endswith("f")
        logits = torch.zeros(263)
        logits[line["correct_id"]], logits[line["competitor_id"]] = 3.0, 4.0
        p = logits.softmax(0)
        assert line["p_correct"] == pytest.approx(float(p[line["correct_id"]]), abs=1e-6)
        assert line["p_competitor"] == pytest.approx(float(p[line["competitor_id"]]), abs=1e-6)
        assert line["nll"] == pytest.approx(-float(p[line["correct_id"]].log()), abs=1e-5)
        assert line["nll_start"] > line["nll"] + 0.1
        assert line["source"] == data.source_names[row.source]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "one"))
    events.Reload()
    assert {"silent/verdict/text_summary", "silent/contexts/text_summary"} <= set(events.Tags()["tensors"])
    first = {e.step: e.value for e in events.Scalars("silent/train/outranked")}
    assert set(first) == {0, 2}, "before the first step, and after the last"


def test_a_resumed_run_keeps_the_start(planted, tmp_path):
    module, data = planted_run(*planted)
    first = trainer(max_epochs=-1, max_steps=2, default_root_dir=tmp_path, callbacks=[whole_monitor(), Plant()])
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    module, data = planted_run(*planted)
    monitor = whole_monitor()
    again = trainer(max_epochs=-1, max_steps=6, val_check_interval=2, callbacks=[monitor])
    again.fit(module, data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    for name in ("train", "val"):
        check(again.callback_metrics, monitor, data, name)
    assert first.callbacks[0].verdicts["train"].outcome == "too early"
    assert monitor.verdicts["train"].outcome == "silent failure"


def test_a_checkpoint_without_a_start_gives_what_needs_none(planted, tmp_path):
    module, data = planted_run(*planted)
    first = trainer(max_epochs=-1, max_steps=2, callbacks=[SilentFailureMonitor(enabled=False), Plant()])
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    module, data = planted_run(*planted)
    monitor = whole_monitor()
    again = trainer(max_epochs=-1, max_steps=4, val_check_interval=2, callbacks=[monitor])
    again.fit(module, data, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert "no reading of them from before training" in monitor.verdicts["train"].sentence
    want = expected(data, "train")
    assert float(again.callback_metrics["silent/train/outranked"]) == pytest.approx(want["outranked"], abs=1e-6)
    assert "silent/train/share" not in again.callback_metrics


def test_it_comes_along_with_the_module_and_samples_rows(planted, tmp_path):
    module, data = planted_run(*planted)
    fit = trainer(max_epochs=-1, max_steps=2, logger=CSVLogger(tmp_path), callbacks=[Plant()])
    fit.fit(module, data)
    monitor = next(c for c in fit.callbacks if isinstance(c, SilentFailureMonitor))
    assert [(s.name, len(s.sample.rows)) for s in monitor.watched] == [("train", 8), ("val", 24)]
    few = SilentFailureMonitor(train_rows=5, val_rows=7, tokens=9)
    module, data = planted_run(*planted)
    fit = trainer(max_epochs=-1, max_steps=2, callbacks=[few, Plant()])
    fit.fit(module, data)
    train, val = few.watched
    assert len(train.sample.rows) <= 5
    assert len(val.sample.rows) <= 7
    assert len(train.sample) == len(val.sample) == 9
    assert bool((train._seen & val._seen).all())


def test_the_trajectory_is_bitwise_the_same_with_and_without(toy_folder, tmp_path):
    from lightning_sft import SFTModule
    from lightning_sft.data import SFTDataModule
    from tests.running import write_rows

    rows, runs = write_rows(tmp_path / "rows.jsonl"), []
    for enabled in (False, True):
        torch.manual_seed(5)
        module = SFTModule(
            str(toy_folder),
            config_overrides={"attention_dropout": 0.2},
            optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
        )
        data = SFTDataModule(str(rows), val_split=6, batch_size=4)
        fit = trainer(max_steps=6, val_check_interval=2, callbacks=[SilentFailureMonitor(enabled=enabled)])
        fit.fit(module, data)
        runs.append(({k: v.clone() for k, v in module.state_dict().items()}, dict(fit.callback_metrics)))
        assert ("silent/train/outranked" in fit.callback_metrics) is enabled
    (plain, metrics), (watched, others) = runs
    assert all(torch.equal(watched[name], value) for name, value in plain.items())
    assert all(torch.equal(others[name], metrics[name]) for name in metrics if name.startswith("val/"))


def test_settings_that_cannot_be_are_refused():
    for settings, message in (
        ({"train_rows": -1}, "train_rows=-1"),
        ({"train_rows": 0, "val_rows": 0}, "no rows to watch"),
        ({"tokens": 0}, "tokens=0"),
        ({"min_fall": -0.1}, "min_fall=-0.1"),
        ({"max_share": 2.0}, "max_share=2.0"),
    ):
        with pytest.raises(UserError, match=message):
            SilentFailureMonitor(**settings)


def test_each_context_that_was_written_is_a_probe_with_the_same_outcome(planted, tmp_path):
    """What the monitor says of a context is what the probe made of it reads, at the start and at the end."""
    module, data = planted_run(*planted)
    monitor, logger = whole_monitor(), TensorBoardLogger(tmp_path, name="run", version="one")
    fit = trainer(max_epochs=-1, max_steps=2, logger=logger, callbacks=[monitor, Plant()])
    fit.fit(module, data)
    path = tmp_path / "run" / "one" / "silent.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    encoded = encode_probes(load_probes(path), module.tokenizer)
    model = module.scorer.causal_lm
    now = synonym_rank(read_probes(model, encoded).logits, encoded.correct, encoded.competitor)
    before = synonym_rank(read_probes(bigram_model(tables()[0]), encoded).logits, encoded.correct, encoded.competitor)
    assert len(lines) > 10
    assert not bool(now.flip.any())
    assert not bool(before.flip.any())
    assert now.loss.tolist() == pytest.approx([line["nll"] for line in lines], abs=1e-5)
    assert before.loss.tolist() == pytest.approx([line["nll_start"] for line in lines], abs=1e-5)
    RunnerUpMargin(pairs=str(path)).prepare(RunFacts(vocabulary=len(module.tokenizer), token_ids=lambda text: []))


def test_the_same_with_synonyms_by_the_embeddings(planted):
    module, data = planted_run(*planted)
    monitor = whole_monitor(min_overlap=0.0)  # one-hot rows: every other token has a cosine of exactly 0
    fit = trainer(max_epochs=-1, max_steps=2, callbacks=[monitor, Plant()])
    fit.fit(module, data)
    values = fit.callback_metrics
    assert float(values["silent/train/synonym/share"]) == float(values["silent/train/share"])
    assert "silent/train/synonym/excess" not in values
    module, data = planted_run(*planted)
    fit = trainer(max_epochs=-1, max_steps=2, callbacks=[whole_monitor(), Plant()])
    fit.fit(module, data)
    assert "silent/train/synonym/share" not in fit.callback_metrics


def test_sources_and_named_sets_have_their_own_keys(planted, tmp_path):
    rows = planted[1].read_text().splitlines()
    parts = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    parts[0].write_text("\n".join(rows[:10]))
    parts[1].write_text("\n".join(rows[10:]))
    named = {"first": str(parts[0]), "second": str(parts[1])}
    module, data = planted_run(*planted, train=[str(p) for p in parts], val=named)
    fit = trainer(max_epochs=-1, max_steps=2, callbacks=[whole_monitor(), Plant()])
    fit.fit(module, data)
    for i, (name, numbers) in enumerate((("first", range(10)), ("second", range(10, 24)))):
        source = data.source_names[i]
        for what, key in (("train", f"train/source/{source}"), ("val", f"val/{name}")):
            want = expected(data, what, list(numbers))
            for field in ("outranked", "share", "flipped", "lost"):
                value = float(fit.callback_metrics[f"silent/{key}/{field}"])
                assert value == pytest.approx(want[field], abs=1e-6), (key, field)


def test_the_next_command_runs_as_it_is_printed(planted, tmp_path, caplog, capsys):
    model, rows = planted[0], write_planted(tmp_path / "many.jsonl", 60)
    plant = "--trainer.callbacks+=tests.callbacks.bigrams.Plant"
    settings = {"data__val_split": 8, "data__apply_chat_template": "never", "trainer__max_steps": 2}
    with caplog.at_level("INFO"):
        run("fit", [*toy_arguments(model, rows, **settings, model__optimizer="SGD", model__optimizer__lr=1e-6), plant])
    (line,) = (x.strip() for x in capsys.readouterr().out.splitlines() if x.strip().startswith("lightning fit"))
    assert line == "lightning fit lightning_logs/version_0 --max_steps 39", "three epochs of 13 steps each"
    run("fit", line.split()[2:])
    out = capsys.readouterr().out
    assert "Next:" not in caplog.text, "one list of commands, at the end"
    assert "SilentFailureMonitor: " not in out, "and no line of its own"
    assert out.count("Train again: ") == 1, "the verdict speaks, and not also the reading before training"
    (line,) = (x.strip() for x in out.splitlines() if x.strip().startswith("lightning fit"))
    assert "/config_resumed_at_step_2.yaml --objective RunnerUpMargin" in line, "as long as the run went on"
    words = line.removeprefix("lightning ").split()
    main([*words, "--trainer.max_steps=1"])
    again = (run_folder() / "config.yaml").read_text()
    assert "RunnerUpMargin" in again
    assert "version_0/silent.jsonl" in again


def test_a_run_without_validation_is_read_at_its_end(planted, tmp_path):
    module, data = planted_run(*planted, val=None)
    logger = CSVLogger(tmp_path)
    trainer(max_epochs=-1, max_steps=3, logger=logger, callbacks=[whole_monitor(), Plant()]).fit(module, data)
    logger.save()
    lines = list(csv.DictReader((Path(logger.log_dir) / "metrics.csv").read_text().splitlines()))
    found = {int(x["step"]): float(x["silent/train/outranked"]) for x in lines if x.get("silent/train/outranked")}
    assert found[3] == pytest.approx(expected(data, "train")["outranked"], abs=1e-6)
    assert set(found) == {0, 3}


class Endless(IterableDataset):
    def __iter__(self):
        return iter(batches(6, 2))


def test_rows_that_cannot_be_watched_are_named(planted):
    """By the monitor that comes along in a line, by one that was asked for in an error."""
    rows = DataLoader(Endless(), batch_size=None)
    fit = trainer(max_epochs=-1, max_steps=2)
    fit.fit(planted_run(*planted)[0], rows, rows)
    assert not any(key.startswith("silent/") for key in fit.callback_metrics)
    fit = trainer(max_epochs=-1, max_steps=2, callbacks=[SilentFailureMonitor()])
    with pytest.raises(UserError, match="cannot be looked up without moving it"):
        fit.fit(planted_run(*planted)[0], rows, rows)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.ones(1, 3).long()}, "a mapping with x. Needed: input_ids and labels"),
        ([1, 2], "is a list. Needed"),
        ({"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[6, 7, -100]])}, "not input_ids at the same"),
    ],
)
def test_batches_that_say_nothing_of_their_labels_are_refused(batch, message):
    with pytest.raises(UserError, match=message):
        documents_of(batch, 0)


def test_documents_are_told_apart_by_their_mask_or_positions():
    ids = torch.tensor([[4, 5, 6, 7, 8, 9]])
    labels = torch.tensor([[4, 5, -100, 7, 8, 9]])
    packed = documents_of({"input_ids": ids, "labels": labels, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}, 3)
    assert [(d.ids.tolist(), d.at.tolist(), d.row) for d in packed] == [([4, 5, 6], [1], 3), ([7, 8, 9], [1, 2], 3)]
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    (padded,) = documents_of({"input_ids": ids, "labels": labels, "attention_mask": mask}, 0)
    assert (padded.ids.tolist(), padded.at.tolist()) == ([6, 7, 8, 9], [1, 2, 3])
    (plain,) = documents_of(ids, 0)
    assert plain.at.tolist() == [1, 2, 3, 4, 5]
