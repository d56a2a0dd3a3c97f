"""Schedules that follow a metric or have an interval of their own, every name of transformers, and rules for groups."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, BatchSizeFinder, LearningRateFinder, ModelPruning
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.tuner import Tuner
from peft import LoraConfig
from transformers.trainer_utils import SchedulerType

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.errors import UserError
from lightning_sft.training.optim import ParameterRule, checked_optimizer, parameter_groups
from lightning_sft.training.schedules import ScheduleName, schedule
from tests.fitting import batches, loader, trainer
from tests.running import run, run_folder, scalars, toy_arguments, write_rows
from tests.toys import toy_model


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.1)


# ---------------------------------------------------------------------- schedules


def test_a_plateau_follows_the_validation(toy_folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    given = {
        "model__lr_scheduler": "lightning.pytorch.cli.ReduceLROnPlateau",
        "model__lr_scheduler__monitor": "val/nll",
        "model__lr_scheduler__patience": "0",
        "model__lr_scheduler__mode": "max",  # so that a falling loss is the plateau
        "model__optimizer": "torch.optim.AdamW",
        "model__optimizer__lr": "1e-2",
        "trainer__max_steps": 4,
        "trainer__val_check_interval": 1,
    }
    run("fit", toy_arguments(toy_folder, rows, **given))
    logged = scalars(run_folder())
    losses, rates = [v for _, v in logged["val/nll"]], [v for _, v in logged["train/lr"]]
    assert losses == sorted(losses, reverse=True), "the loss falls"
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])


@pytest.mark.parametrize("monitor", ["val/nll", "val/nothing"])
def test_the_plateau_by_name_and_a_metric_that_is_not_logged(monitor: str, toy_folder: Path) -> None:
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = SFTModule(
        str(toy_folder),
        optimizer=sgd,
        lr_scheduler="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "mode": "max", "factor": 0.5},
        lr_scheduler_config={"monitor": monitor},
    )
    fit = trainer(max_steps=3, val_check_interval=1, callbacks=[Rates()])
    if monitor != "val/nll":
        with pytest.raises(UserError, match=r"follows 'val/nothing', which the validation has not logged. .*val/nll"):
            fit.fit(module, loader(batches(6, 2)), loader(batches(4, 2)))
        return
    fit.fit(module, loader(batches(6, 2)), loader(batches(4, 2)))
    assert rates == [0.1, 0.1, 0.05], "the rate after the step; the validation comes after that"


def test_a_scheduler_with_an_interval_of_its_own(toy_folder: Path) -> None:
    given = {
        "optimizer": sgd,
        "lr_scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
        "lr_scheduler_config": {"interval": "epoch"},
    }
    module = SFTModule(str(toy_folder), **given)
    fit = Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    fit.fit(module, loader(batches(4, 2)))
    assert fit.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.025)
    for wrong in ({"interval": "week"}, {"every": 2}):
        with pytest.raises(UserError, match="lr_scheduler_config is"):
            trainer(max_steps=1).fit(SFTModule(str(toy_folder), lr_scheduler_config=wrong), loader(batches(2, 2)))


class KeepRates(Callback):
    """Notes the rate of the first group in each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_finished_run_that_is_continued_has_the_rates_of_the_longer_run(
    name: ScheduleName, accumulate: int, toy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def rates(steps: int, path: Path | None = None) -> list[float]:
        module = SFTModule(str(toy_folder), optimizer=sgd, lr_scheduler=name)
        keep = KeepRates()
        fit = trainer(max_steps=steps, max_epochs=-1, accumulate_grad_batches=accumulate, callbacks=[keep])
        fit.fit(module, loader(batches(6, 2)), ckpt_path=path)
        if path is None:
            fit.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return keep.rates

    whole = rates(6)
    assert rates(3)[1:] < whole[1:3], "another curve, which ends at 0"
    assert rates(6, tmp_path / "3.ckpt") == whole[3:]
    assert f"The learning rate goes on at {whole[3]:.3g}, and not at 0, where the run stood" in caplog.text
    caplog.clear()
    rates(6, tmp_path / "6.ckpt")
    assert "learning rate goes on" not in caplog.text


def test_a_rate_that_somebody_set_before_the_first_step_stays(toy_folder: Path, tmp_path: Path) -> None:
    class SetRate(KeepRates):
        def on_train_start(self, trainer: Trainer, *args: Any) -> None:
            trainer.optimizers[0].param_groups[0]["lr"] = 0.025

    module, keep = SFTModule(str(toy_folder), optimizer=sgd), SetRate()
    first = trainer(max_steps=1, max_epochs=-1)
    first.fit(module, loader(batches(6, 2)))
    first.save_checkpoint(tmp_path / "one.ckpt")
    again = SFTModule(str(toy_folder), optimizer=sgd)
    fit = trainer(max_steps=3, max_epochs=-1, callbacks=[keep])
    fit.fit(again, loader(batches(6, 2)), ckpt_path=tmp_path / "one.ckpt")
    assert keep.rates == pytest.approx([0.025, 0.1 / 3])


#: what some names cannot do without
NEEDS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 2},
}


def test_every_name_of_transformers() -> None:
    known = set(get_args(ScheduleName))
    assert {kind.value for kind in SchedulerType} - known == {"greedy"}
    for name in known:
        optimizer = sgd([torch.nn.Parameter(torch.zeros(1))])
        scheduler = schedule(optimizer, name, 10, 0, NEEDS.get(name))
        for _ in range(3):
            optimizer.step()
            scheduler.step(*([1.0] if name == "reduce_lr_on_plateau" else []))
        assert optimizer.param_groups[0]["lr"] > 0
    for name, kwargs, words in (
        ("cosine_with_min_lr", None, "model.lr_scheduler_kwargs"),
        ("linear", {"nonsense": 1}, "refuses its arguments"),
        ("constant", {"a": 1}, "takes none"),
    ):
        with pytest.raises(UserError, match=words):
            schedule(sgd([torch.nn.Parameter(torch.zeros(1))]), name, 10, 0, kwargs)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Warm-up cannot stand in front of reduce_lr_on_plateau"):
        schedule(sgd([torch.nn.Parameter(torch.zeros(1))]), "reduce_lr_on_plateau", 10, 2)


# ---------------------------------------------------------------------- groups


def test_rules_make_groups_and_lora_plus_has_its_ratio(toy_folder: Path) -> None:
    rules = [
        ParameterRule("lora_", weight_decay=0.0),
        ParameterRule("lora_B", lr_factor=16.0),
        ParameterRule(r"layers\.0\..*q_proj.*lora_B", lr=1e-6),
    ]
    module = SFTModule(
        str(toy_folder),
        adapter=LoraConfig(target_modules="all-linear"),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
        parameter_rules=rules,
        lr_scheduler="constant",
    )
    fit = trainer(max_steps=1)
    fit.fit(module, loader(batches(2, 2)))
    names = {id(p): n for n, p in module.scorer.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in fit.optimizers[0].param_groups for p in g["params"]}
    assert found.keys() == {n for n, p in module.scorer.named_parameters() if p.requires_grad}
    for name, settings in found.items():
        first = "layers.0." in name and "q_proj" in name
        expected = 1e-3 if "lora_A" in name else 1e-6 if first else 16e-3
        assert settings == (pytest.approx(expected), 0.0), name


def test_no_decay_by_name_and_a_rate_for_embeddings() -> None:
    model = toy_model("gpt2")
    groups = parameter_groups(model, [ParameterRule("wte", lr=1e-6), ParameterRule("mlp", weight_decay=0.0)])
    optimizer = checked_optimizer(lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1), groups)
    settings = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(settings) == sum(p.requires_grad for p in model.parameters())
    assert settings[id(model.transformer.wte.weight)] == (1e-6, 0.1)
    assert settings[id(model.transformer.h[0].mlp.c_fc.weight)] == (1e-3, 0.0)
    assert settings[id(model.transformer.h[0].attn.c_attn.weight)] == (1e-3, 0.1)
    assert settings[id(model.transformer.h[0].ln_1.weight)] == (1e-3, 0.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ParameterRule("("), "no regular expression"),
        (lambda: ParameterRule("a"), "sets nothing"),
        (lambda: ParameterRule("a", lr=1.0, lr_factor=2.0), "has lr and lr_factor"),
        (lambda: ParameterRule("a", lr=-1.0), "cannot be"),
        (lambda: parameter_groups(toy_model(), [ParameterRule("wte", lr=1.0)]), "in the name of none"),
    ],
)
def test_rules_that_cannot_be_are_refused(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def test_rules_on_the_command_line(toy_folder: Path, tmp_path: Path) -> None:
    rules = json.dumps([{"match": "embed_tokens", "lr": 1e-6}, {"match": "norm", "weight_decay": 0.5}])
    rows = write_rows(tmp_path / "rows.jsonl")
    run("fit", toy_arguments(toy_folder, rows, model__parameter_rules=rules, trainer__max_steps=1))
    stored = torch.load(run_folder() / "checkpoints" / "last.ckpt", weights_only=True)
    groups = stored["optimizer_states"][0]["param_groups"]
    assert sorted(g["initial_lr"] for g in groups) == [1e-6, 2e-5, 2e-5]
    assert {g["weight_decay"] for g in groups} == {0.01, 0.5}


def test_an_optimizer_of_matrices_gets_an_adapter_or_is_refused(toy_folder: Path) -> None:
    muon = {"optimizer": lambda p: torch.optim.Muon(p, lr=1e-3), "lr_scheduler": "constant"}
    with pytest.raises(UserError, match=r"takes matrices only, and 5 of the trainable parameters .*peft.LoraConfig"):
        trainer(max_steps=1).fit(SFTModule(str(toy_folder), **muon), loader(batches(2, 2)))
    adapted = SFTModule(str(toy_folder), adapter=LoraConfig(target_modules="all-linear"), **muon)
    trainer(max_steps=2).fit(adapted, loader(batches(4, 2)))
    assert adapted.trainer.global_step == 2


# ---------------------------------------------------------------------- Lightning's own callbacks


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_batch_size_finder_works(mode: str, toy_folder: Path, tmp_path: Path) -> None:
    data = SFTDataModule(train=str(write_rows(tmp_path / "rows.jsonl", 40)), val_split=8, batch_size=2)
    module = SFTModule(str(toy_folder))
    finder = BatchSizeFinder(mode=mode, max_trials=2, steps_per_trial=1)
    trainer(max_steps=2, callbacks=[finder]).fit(module, data)
    assert data.batch_size == finder.optimal_batch_size > 2
    assert module.trainer.global_step == 2


def test_the_tuner_finds_a_batch_size_and_lr_find_is_sent_to_the_sweep(toy_folder: Path, tmp_path: Path) -> None:
    data = SFTDataModule(train=str(write_rows(tmp_path / "rows.jsonl", 40)), val_split=8, batch_size=2)
    fit = trainer(max_steps=2)
    assert Tuner(fit).scale_batch_size(SFTModule(str(toy_folder)), datamodule=data, max_trials=2, steps_per_trial=1) > 2
    with pytest.raises(UserError, match="Use LearningRateSweep with apply: true"):
        Tuner(trainer(max_steps=2)).lr_find(SFTModule(str(toy_folder)), datamodule=data)
    with pytest.raises(UserError, match="Use LearningRateSweep"):
        trainer(max_steps=2, callbacks=[LearningRateFinder()]).fit(SFTModule(str(toy_folder)), data)


class Freezes(BaseFinetuning):
    """Trains the last layer alone, from the start."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.scorer)
        self.make_trainable(pl_module.scorer.causal_lm.model.layers[-1])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        """Unfreeze nothing."""


def test_callbacks_that_read_parameters_before_the_run_find_them(toy_folder: Path) -> None:
    module = SFTModule(str(toy_folder))
    trainer(max_steps=1, callbacks=[Freezes()]).fit(module, loader(batches(2, 2)))
    trained = {n.split(".layers.")[-1][0] for n, p in module.scorer.named_parameters() if p.requires_grad}
    assert trained == {"1"}
    pruned = SFTModule(str(toy_folder))
    prune = ModelPruning("l1_unstructured", amount=0.3)
    trainer(max_steps=2, callbacks=[prune]).fit(pruned, loader(batches(4, 2)))
    weights = torch.cat([p.detach().flatten() for n, p in pruned.named_parameters() if p.ndim > 1])
    assert float((weights == 0).float().mean()) == pytest.approx(0.3, abs=0.05)


def test_the_plateau_of_lightning_is_what_the_command_line_makes() -> None:
    assert issubclass(ReduceLROnPlateau, torch.optim.lr_scheduler.ReduceLROnPlateau)
