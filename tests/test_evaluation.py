"""What a validation reads of named sets and whole answers, through a fit."""

import csv
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.data.named import NamedSet
from lightning_sft.errors import UserError
from lightning_sft.models.generation import generate
from tests.running import run, run_folder, scalars, toy_arguments, write_rows


def rows(path: Path, words: list[str]) -> str:
    lines = ({"prompt": f"say {word}", "completion": word} for word in words)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


WORDS = ["a", "bb", "ccc", "dddd", "ef", "g", "hi", "jk"]


class Kept(Callback):
    """What each validation of a fit has logged."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.before: dict[str, float] = {}

    def on_validation_start(self, trainer, pl_module):
        self.logged: dict[str, float] = {}
        log = pl_module.log

        def note(name, value, *args, **kwargs):
            self.logged[name] = float(value)
            log(name, value, *args, **kwargs)

        pl_module.log = note

    def on_validation_end(self, trainer, pl_module):
        del pl_module.log
        self.seen.append({k: v for k, v in self.logged.items() if k.startswith("val/")})


def fit(model: Path, data: SFTDataModule, callbacks=(), module=None, ckpt_path=None, **options):
    settings = {"max_steps": 4, "val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    settings |= {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    settings |= {"devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(callbacks=list(callbacks), **settings | options)
    adamw = partial(torch.optim.AdamW, lr=1e-2)
    module = module or SFTModule(str(model), optimizer=adamw, lr_scheduler="constant")
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module


@pytest.fixture
def files(tmp_path):
    return {name: rows(tmp_path / f"{name}.jsonl", WORDS[i : i + 4]) for i, name in enumerate(("one", "two", "three"))}


def data(files, tmp_path, **settings):
    train = rows(tmp_path / "train.jsonl", ["xx", "yyy", "zz", "w"])
    return SFTDataModule(train=train, batch_size=2, cache_dir=False, **settings)


@pytest.mark.parametrize("layout", ["padded", "auto"])
def test_named_sets_equal_validations_of_their_own(toy_folder, tmp_path, files, layout):
    named = data(files, tmp_path, val={"one": files["one"], "both": [files["two"], files["three"]]}, layout=layout)
    kept = Kept()
    _, module = fit(toy_folder, named, [kept], max_steps=1)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    quiet = {"verbose": False}
    for name, chosen in (("one", files["one"]), ("both", [files["two"], files["three"]])):
        (alone,) = trainer.validate(module, data(files, tmp_path, val=chosen, layout=layout), **quiet)
        for key, value in alone.items():
            if key.startswith("capability/"):  # of rows of all sets together
                continue
            assert kept.seen[0][key.replace("val/", f"val/{name}/")] == pytest.approx(value, rel=1e-5), (name, key)
    (pooled,) = trainer.validate(module, data(files, tmp_path, val=list(files.values()), layout=layout), **quiet)
    pooled = {key: value for key, value in pooled.items() if not key.startswith("capability/")}
    assert {k: v for k, v in kept.seen[0].items() if k.count("/") == 1} == pytest.approx(pooled, rel=1e-5)
    assert not any(key.count("/") > 1 for key in pooled)


def test_a_set_is_read_at_every_second_validation_and_resumes_so(toy_folder, tmp_path, files):
    def fresh():
        return data(files, tmp_path, val={"one": files["one"], "rare": NamedSet(files["two"], every=2)})

    whole = Kept()
    fit(toy_folder, fresh(), [whole])
    rare = ["val/rare/nll" in seen for seen in whole.seen]
    assert rare == [False, True, False, True]
    for seen in whole.seen:
        assert seen["val/nll"] == seen["val/one/nll"]
    first, second = Kept(), Kept()
    trainer, _ = fit(toy_folder, fresh(), [first], max_steps=3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    fit(toy_folder, fresh(), [second], ckpt_path=str(tmp_path / "three.ckpt"))
    assert ["val/rare/nll" in seen for seen in second.seen] == [True]
    assert second.seen[0] == pytest.approx(whole.seen[3], rel=1e-6)


def test_checkpoints_and_early_stopping_wait_for_a_set_that_is_not_read(toy_folder, tmp_path, files):
    val = {"one": files["one"], "rare": NamedSet(files["two"], every=2)}
    kept, patience = Kept(), 2
    stop = EarlyStopping("val/rare/nll", patience=patience, mode="max")  # it falls for the most part
    best = ModelCheckpoint(tmp_path / "best", monitor="val/rare/nll", filename="{step}", save_on_train_epoch_end=False)
    callbacks = [kept, stop, best]
    trainer, _ = fit(toy_folder, data(files, tmp_path, val=val), callbacks, max_steps=30, enable_checkpointing=True)
    read = [(step, seen["val/rare/nll"]) for step, seen in enumerate(kept.seen, start=1) if "val/rare/nll" in seen]
    assert [step for step, _ in read] == list(range(2, trainer.global_step + 1, 2))
    highest = max(read, key=lambda entry: entry[1])[0]
    assert trainer.global_step == highest + 2 * patience
    assert Path(best.best_model_path).stem == f"step={min(read, key=lambda entry: entry[1])[0]}"


def test_exact_match_is_what_greedy_decoding_gives(toy_folder, tmp_path, files):
    train = rows(tmp_path / "all.jsonl", WORDS)
    learned = SFTDataModule(train=train, val={"seen": train}, batch_size=4, cache_dir=False)
    kept = Kept()
    shares = []

    class Greedy(Callback):
        def on_validation_end(self, trainer, module):
            prompts = learned.generation_rows("val")
            answers = generate(
                module.scorer.causal_lm, module.tokenizer, [r.prompt_ids for r in prompts], max_new_tokens=12
            )
            shares.append(sum(a == r.reference for a, r in zip(answers, prompts, strict=True)) / len(prompts))

    module = SFTModule(str(toy_folder), optimizer=lambda p: torch.optim.AdamW(p, lr=2e-2), pass_at_k=[4])
    fit(toy_folder, learned, [kept, Greedy()], module, max_steps=60, val_check_interval=2)
    assert [seen["val/seen/exact_match"] for seen in kept.seen] == shares
    assert len(set(shares)) > 2
    assert shares[-1] > 0.5
    last = kept.seen[-1]
    assert 0 < last["val/pass_at_1"] <= last["val/pass_at_4"] <= 1


def test_pass_at_k_is_a_setting_of_the_command_line(toy_folder, tmp_path):
    rows_file = write_rows(tmp_path / "rows.jsonl")
    run("fit", [*toy_arguments(toy_folder, rows_file, trainer__val_check_interval=3), "--model.pass_at_k=[8,1,2]"])
    logged = scalars(run_folder())
    assert {k for k in logged if "pass_at" in k} == {"val/pass_at_1", "val/pass_at_2", "val/pass_at_8"}
    one, two, eight = (logged[f"val/pass_at_{k}"][-1][1] for k in (1, 2, 8))
    assert one < two < eight


@pytest.mark.parametrize("wrong", [[0], [-1, 4], [True], [2.5], ["4"]])
def test_a_k_that_is_no_number_of_samples_is_refused(toy_folder, wrong):
    with pytest.raises(UserError, match=r"model.pass_at_k holds .*whole numbers from 1"):
        SFTModule(str(toy_folder), pass_at_k=wrong)


def test_training_is_read_by_source(toy_folder, tmp_path, files):
    rows_of_three = SFTDataModule(train=list(files.values()), batch_size=12, cache_dir=False)
    logger = CSVLogger(tmp_path)
    fit(toy_folder, rows_of_three, max_steps=1, logger=logger)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = {key: float(value) for row in csv.DictReader(file) for key, value in row.items() if value}
    nll = [logged[f"train/source/{name}/nll"] for name in files]
    shares = [logged[f"train/source/{name}/token_share"] for name in files]
    assert sum(shares) == pytest.approx(1, rel=1e-6)
    assert sum(n * s for n, s in zip(nll, shares, strict=True)) == pytest.approx(logged["train/nll"], rel=1e-6)


def test_named_sets_from_a_file_of_settings(toy_folder, tmp_path, files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"data": {"val": {"one": files["one"], "rare": {"sources": [files["two"]], "every": 2}}}}
    (tmp_path / "sets.yaml").write_text(json.dumps(config))
    train = write_rows(tmp_path / "train.jsonl")
    settings = {"data__val_split": None, "trainer__max_steps": 2, "trainer__val_check_interval": 1}
    run("fit", ["--config=sets.yaml", *toy_arguments(toy_folder, train, **settings)])
    logged = scalars(run_folder())
    assert len(logged["val/one/nll"]) == 2
    assert len(logged["val/rare/nll"]) == 1
    assert math.isfinite(logged["val/rare/exact_match"][0][1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val": {"a/b": "x.jsonl"}}, "'a/b'"),
        ({"val": {" a": "x.jsonl"}}, "' a'"),
        ({"val": {"a": NamedSet("x.jsonl", every=0)}}, "every is 0"),
        ({"val": {"a": NamedSet("x.jsonl", every=2)}}, "every validation"),
        ({"val": {"a": []}}, "names no source"),
        ({"val": {"a": {"source": "x.jsonl"}}}, "'source'"),
        ({"test": {"a": NamedSet("x.jsonl", every=2)}}, "run once"),
        ({"train": {"a": "x.jsonl"}}, "data.train is a mapping"),
        ({"val": {"a": ["x.jsonl", "folder/x.jsonl"]}}, "several sources are named"),
    ],
)
def test_bad_sets_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        SFTDataModule(**{"train": "x.jsonl", **settings})
