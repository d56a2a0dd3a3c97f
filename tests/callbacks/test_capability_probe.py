"""CapabilityProbe reads what plain transformers reads, everywhere, and leaves no trace."""

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from peft import LoraConfig
from torch.utils.data import DataLoader, IterableDataset
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import CapabilityProbe
from lightning_sft.data import Source
from lightning_sft.errors import UserError
from lightning_sft.metrics import load_reading
from lightning_sft.objectives import Thresholded
from tests.advice.readings import by_transformers, planted
from tests.callbacks.stranger import Stranger, fit
from tests.distributed.ranks import two_ranks
from tests.running import run, run_folder, scalars, toy_arguments, write_rows
from tests.toys import toy_tokenizer

ENDS = {2}


def trainer(folder: Path, *callbacks: Callback, **settings) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    given = {"accelerator": "cpu", "max_steps": 4, "logger": CSVLogger(folder), "default_root_dir": folder}
    return Trainer(**{**quiet, **given, **settings}, callbacks=list(callbacks))


def data(folder: Path, **settings) -> SFTDataModule:
    return SFTDataModule(train=str(write_rows(folder / "rows.jsonl", 30)), batch_size=4, **settings)


def rows_of(datamodule: SFTDataModule) -> list[tuple[list[int], list[bool]]]:
    dataset = datamodule.dataset("train")
    return [(row.ids.tolist(), row.trained.tolist()) for row in (dataset[i] for i in range(len(dataset)))]


def assert_equal(group, expected: dict[str, float], tolerance: float = 1e-5) -> None:
    for name, value in expected.items():
        assert getattr(group, name) == pytest.approx(value, rel=tolerance, abs=1e-9), name


@pytest.mark.parametrize("order", ["shuffled", "packed"])
@pytest.mark.parametrize("lora", [False, True])
def test_before_and_after_equal_plain_transformers(toy_folder, tmp_path, order, lora):
    adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3) if lora else None
    module = SFTModule(str(toy_folder), adapter=adapter, optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    rows, probe = data(tmp_path, order=order, max_length=80), CapabilityProbe(most_share=None)
    start = {}

    class Before(Callback):
        def on_fit_start(self, trainer, pl_module):
            start["model"] = copy.deepcopy(pl_module.scorer.causal_lm).eval()

    fitted = trainer(tmp_path, Before(), probe)
    fitted.fit(module, rows)
    assert probe.start.all.rows == 30
    assert_equal(probe.start.all, by_transformers(start["model"], rows_of(rows), ENDS))
    assert_equal(probe.end.all, by_transformers(module.scorer.causal_lm.eval(), rows_of(rows), ENDS))
    assert probe.end.all.mean_p > probe.start.all.mean_p
    stored = load_reading(Path(fitted.log_dir) / "capability.json")
    assert stored == probe.start
    assert Thresholded(percentile=50, histogram=Path(fitted.log_dir) / "capability.json").threshold == pytest.approx(
        stored.all.p_quantiles["50%"], rel=0.05
    )


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "gpt_neox", "opt"])
def test_other_architectures(tmp_path, kind):
    probe, module = CapabilityProbe(most_share=None), Stranger(kind)
    before = copy.deepcopy(module.net).eval()
    fit(module, [probe], tmp_path, max_steps=1)
    chosen = list(DataLoader(module.train_dataloader().dataset, batch_size=1))
    rows = [(row[0].tolist(), [True] * 24) for row in chosen]
    assert_equal(probe.start.all, by_transformers(before, rows, ENDS))


def test_an_adapter_on_the_head_is_read_by_the_models_own_logits(toy_folder, tmp_path):
    adapter = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    module = SFTModule(
        str(toy_folder),
        init="random",
        adapter=adapter,
        head="reference",
        config_overrides={"tie_word_embeddings": False},
    )
    rows, probe = data(tmp_path), CapabilityProbe(most_share=None)
    trainer(tmp_path, probe, max_steps=1).fit(module, rows)
    # one step at 2e-5 moves the adapter by less than what is compared
    assert_equal(probe.end.all, by_transformers(module.scorer.causal_lm.eval(), rows_of(rows), ENDS))


@pytest.mark.parametrize("kind", ["ours", "stranger"])
def test_the_trajectory_is_bitwise_the_same_with_and_without(toy_folder, tmp_path, kind):
    ends = []
    for enabled in (False, True):
        torch.manual_seed(1)
        probe = CapabilityProbe(enabled=enabled)
        if kind == "ours":
            adapter = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.3)
            module = SFTModule(str(toy_folder), adapter=adapter)
            trainer(tmp_path, probe, max_epochs=1, max_steps=-1).fit(module, data(tmp_path, val_split=4))
        else:
            module = Stranger(attention_dropout=0.3)
            fit(module, [probe], tmp_path)
        assert (probe.end is not None) == enabled
        ends.append([p.detach().clone() for p in module.parameters()] + [torch.rand(1), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_model_that_broke_in_training_has_no_second_reading(toy_folder, tmp_path):
    class Break(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            next(pl_module.parameters()).data.fill_(float("nan"))

    probe = CapabilityProbe()
    fitted = trainer(tmp_path, Break(), probe, max_steps=1)
    fitted.fit(SFTModule(str(toy_folder)), data(tmp_path))
    assert (probe.start is not None, probe.end) == (True, None)
    assert load_reading(Path(fitted.log_dir) / "capability.json") == probe.start
    broken = SFTModule(str(toy_folder), objective="auto")
    with pytest.raises(UserError, match=r"the model gives no number \(NaN\)"):
        trainer(tmp_path, Poison(), max_steps=1).fit(broken, data(tmp_path))


class Poison(Callback):
    """Breaks the weights before anything reads them."""

    def on_fit_start(self, trainer, pl_module):
        next(pl_module.parameters()).data.fill_(float("nan"))


def test_short_fits_read_fewer_rows(toy_folder, tmp_path):
    probes = CapabilityProbe(), CapabilityProbe(rows=3, most_share=None), CapabilityProbe(most_share=1.0)
    for probe in probes:
        trainer(tmp_path, probe, max_steps=6).fit(SFTModule(str(toy_folder)), data(tmp_path))
    assert [probe.start.all.rows for probe in probes] == [20, 3, 24]  # of 6 steps of 4 rows


def test_it_comes_along_on_the_command_line_with_keys_and_a_file(toy_folder, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl")
    logger = json.dumps({"class_path": "TensorBoardLogger", "init_args": {"save_dir": "lightning_logs", "name": ""}})
    run("fit", toy_arguments(toy_folder, rows, trainer__logger=logger))
    folder = run_folder()
    curves = scalars(folder)
    assert [step for step, _ in curves["capability/mean_p"]] == [0, 3]
    assert curves["capability/end/mean_p"][0][1] == pytest.approx(load_reading(folder / "capability.json").end.mean_p)
    content = json.loads((folder / "capability.json").read_text())
    assert content["end"]["all"]["tokens"] == content["start"]["all"]["tokens"]
    assert content["advice"]["command"].startswith(f"lightning fit {folder}/config.yaml ")
    (last,) = (folder / "checkpoints").glob("last.ckpt")
    run("fit", toy_arguments(toy_folder, rows, trainer__max_steps=5, ckpt_path=last, trainer__logger=logger))
    resumed = json.loads((folder / "capability.json").read_text())
    assert resumed["start"] == content["start"], "a resumed run keeps the start"
    assert (resumed["step"], resumed["end"] != content["end"]) == (5, True)


def test_validate_reads_the_validation_rows(toy_folder, tmp_path):
    rows = data(tmp_path, val_split=6)
    module = SFTModule(str(toy_folder))
    checking = trainer(tmp_path, logger=False)
    (values,) = checking.validate(module, rows, verbose=False)
    dataset = rows.dataset("val")
    chosen = [(row.ids.tolist(), row.trained.tolist()) for row in (dataset[i] for i in range(len(dataset)))]
    expected = by_transformers(module.scorer.causal_lm.eval(), chosen, ENDS)
    assert values["capability/mean_p"] == pytest.approx(expected["mean_p"], rel=1e-5)
    assert values["capability/mean_p"] == pytest.approx(values["val/mean_p"], rel=1e-5)


def test_sources_are_read_apart(toy_folder, tmp_path):
    files = {name: str(write_rows(tmp_path / f"{name}.jsonl", count)) for name, count in (("a", 30), ("b", 9))}
    rows = SFTDataModule(train=[Source(path, name=name) for name, path in files.items()], batch_size=4)
    probe = CapabilityProbe(most_share=None)
    trainer(tmp_path, probe).fit(SFTModule(str(toy_folder)), rows)
    assert {name: group.rows for name, group in probe.start.sources.items()} == {"a": 30, "b": 9}


class Collated(Stranger):
    """Rows of other people's format, put together by transformers' own collators."""

    def __init__(self, collator):
        super().__init__()
        self.collator = collator

    def training_step(self, batch, batch_idx):
        return self.net(**batch).loss

    def train_dataloader(self):
        ids = [[3 + (i * 7 + j) % 200 for j in range(5 + i % 9)] for i in range(37)]
        rows = [{"input_ids": row, "labels": [-100, -100, *row[2:]]} for row in ids]
        return DataLoader(rows, batch_size=4, shuffle=True, collate_fn=self.collator)


@pytest.mark.parametrize("collator", [DataCollatorForSeq2Seq(toy_tokenizer()), DataCollatorWithFlattening()])
def test_collators_of_transformers(tmp_path, collator):
    module, probe = Collated(collator), CapabilityProbe(most_share=None)
    before = copy.deepcopy(module.net).eval()
    fit(module, [probe], tmp_path, max_steps=1)
    rows = [(row["input_ids"], [label != -100 for label in row["labels"]]) for row in module.train_dataloader().dataset]
    assert_equal(probe.start.all, by_transformers(before, rows, ENDS))
    assert probe.start.all.rows == 37


class Stream(IterableDataset):
    def __iter__(self):
        yield from DataLoader(Stranger().train_dataloader().dataset, batch_size=None)


class Unlabelled(Stranger):
    def train_dataloader(self):
        return DataLoader(Stream(), batch_size=4)


def test_what_cannot_be_read_is_named_and_lets_a_run_that_did_not_ask_be(tmp_path):
    with pytest.raises(UserError, match="over a dataset with a length"):
        fit(Unlabelled(), [CapabilityProbe()], tmp_path, max_steps=1)
    probe = CapabilityProbe.where_possible()
    fit(Unlabelled(), [probe], tmp_path, max_steps=1)
    assert probe.start is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rows": 0}, "rows=0"), ({"most_share": 0.0}, "most_share"), ({"weak": 0.8}, "weak < strong")],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        CapabilityProbe(**settings)


def test_rows_without_a_supervised_token_are_named(tmp_path):
    class Silent(Stranger):
        def train_dataloader(self):
            ids = torch.randint(3, 200, (8, 12))
            items = [{"input_ids": row, "labels": torch.full_like(row, -100)} for row in ids]
            return DataLoader(items, batch_size=4)

    with pytest.raises(UserError, match="no supervised token"):
        fit(Silent(), [CapabilityProbe()], tmp_path, max_steps=1)


@pytest.mark.ranks
def test_two_ranks_read_what_one_reads(toy_folder, tmp_path):
    write_rows(tmp_path / "rows.jsonl", 31)
    probe = CapabilityProbe(most_share=None)
    rows = SFTDataModule(train=str(tmp_path / "rows.jsonl"), batch_size=2)
    trainer(tmp_path / "one", probe, max_steps=1).fit(SFTModule(str(toy_folder)), rows)
    one = probe.start.all
    results = two_ranks("tests.callbacks.capability_ranks:readings", tmp_path, model=str(toy_folder))
    for rank in results:
        for how in ("ddp", "fsdp2"):
            found = rank[how]
            assert found["rows"] == 31
            assert found["mean_p"] == pytest.approx(one.mean_p, rel=1e-6), how
            assert found["interval"] == pytest.approx(one.mean_p_interval, rel=1e-6)
            assert found["exact"] == one.exact_match
            assert found["end"] > found["mean_p"], "after a step the same tokens are likelier"
        assert rank["same"], "the trajectory under FSDP2 is that of the run without a probe"


def test_figures_reach_tensorboard(toy_folder, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    fitted = trainer(tmp_path, CapabilityProbe(), logger=logger)
    fitted.fit(SFTModule(str(toy_folder)), data(tmp_path))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [image.step for image in events.Images("capability/figure")] == [0, 4]
    assert "capability/advice/text_summary" in events.Tags()["tensors"]
    (text,) = events.Tensors("capability/advice/text_summary")
    assert b"```" not in text.tensor_proto.string_val[0], "TensorBoard does not wrap a block of code"


@pytest.mark.parametrize("trained", [False, True])
def test_a_validation_of_a_few_rows_says_so_and_advises_only_before_training(toy_folder, tmp_path, caplog, trained):
    rows, module = data(tmp_path, val_split=2), SFTModule(str(toy_folder))
    given = {}
    if trained:
        fit = trainer(tmp_path, max_steps=1, logger=False)
        fit.fit(module, rows)
        fit.save_checkpoint(tmp_path / "one.ckpt")
        given = {"ckpt_path": tmp_path / "one.ckpt", "weights_only": False}
    caplog.clear()
    with caplog.at_level("INFO"):
        trainer(tmp_path, logger=False).validate(module, rows, verbose=False, **given)
    assert "Capability on 2 validation rows: perhaps weak" in caplog.text
    assert "(too few rows for an interval)" in caplog.text
    assert "none of 2 answers is right, so the share of right ones may be anything from 0.0% to 84.2%" in caplog.text
    assert "Of all " not in caplog.text, "the table has them"
    doubt = "The reading rests on 2 rows; 20 are needed to say where the model stands: 18 are missing."
    assert caplog.text.count(doubt) == 1, "before training and after it"
    assert (f"Before this model is trained on such rows: {doubt}" in caplog.text) != trained
    assert ("Try first" in caplog.text) != trained


def test_a_place_that_is_not_certain_after_a_fit_is_told_as_before_it(toy_folder, tmp_path, caplog, monkeypatch):
    readings = iter([planted({"a": 0.02}), planted({"a": 0.1}, noise=0.05)])
    monkeypatch.setattr(CapabilityProbe, "_read", lambda *_: next(readings))
    fitted = trainer(tmp_path, CapabilityProbe(), max_steps=1)
    with caplog.at_level("INFO"):
        fitted.fit(SFTModule(str(toy_folder)), data(tmp_path))
    before, _, after = caplog.text.partition("Capability on the same tokens after the fit: ")
    doubt = re.search(r"The interval of mean p, .*, holds the cut-off 0.1: the place is not certain.", after)
    assert doubt is not None
    assert "the place is not certain" not in before
    written = json.loads((Path(fitted.log_dir) / "capability.json").read_text())
    assert written["doubts_after"] == [doubt[0]]
