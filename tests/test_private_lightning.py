"""Watches what _lightning.py touches: fails loudly when Lightning changes it."""

import inspect

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.mixins import hparams_mixin
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_sft import _lightning


def test_hyperparameters_given_by_the_cli() -> None:
    assert not _lightning.made_by_cli()
    with hparams_mixin._given_hyperparameters_context(hparams={"a": 1}, instantiator="x"):
        assert _lightning.made_by_cli()
    assert not _lightning.made_by_cli()


def test_trainer_attributes() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, log_every_n_steps=7)
    assert _lightning.log_interval(trainer) == 7
    assert all(callable(callback.setup) for callback in _lightning.callbacks_of(trainer))
    module = LightningModule()
    assert _lightning.attached_trainer(module) is None
    module.trainer = trainer
    assert _lightning.attached_trainer(module) is trainer


def test_form_of_checkpoints() -> None:
    for sharded in (False, True):
        assert _lightning.saves_shards(ModelParallelStrategy(save_distributed_checkpoint=sharded)) is sharded


def test_cli_parses_checkpoints_where_it_is_overridden() -> None:
    assert "_parse_ckpt_path" in inspect.getsource(LightningCLI.__init__)
    assert list(inspect.signature(LightningCLI._parse_ckpt_path).parameters) == ["self"]
