"""Watches what _lightning/ touches: fails loudly when Lightning changes it."""

import inspect
from pathlib import Path

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.mixins import hparams_mixin
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.optim.swa_utils import AveragedModel

from lightning_sft import _lightning
from lightning_sft._lightning import loops, saving


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
    assert _lightning.state_key_of(ProgressBar(), name="a") == "ProgressBar{'name': 'a'}"


def test_sizes_of_model_parallel_strategy() -> None:
    assert _lightning.sizes_are_auto(ModelParallelStrategy())
    assert _lightning.sizes_are_auto(ModelParallelStrategy(data_parallel_size=2))
    assert not _lightning.sizes_are_auto(ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1))


def test_checkpoints_are_looked_at_before_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, object, object]] = []

    def load(self: object, checkpoint_path: Path, weights_only: bool | None = None) -> dict[str, int]:
        calls.append(("load", checkpoint_path, weights_only))
        return {"epoch": 1}

    arguments = inspect.signature(ModelParallelStrategy.load_checkpoint).parameters
    assert list(arguments) == ["self", "checkpoint_path", "weights_only"]
    monkeypatch.setattr(ModelParallelStrategy, "load_checkpoint", load)
    strategy = ModelParallelStrategy()
    _lightning.before_loading(strategy, lambda path: calls.append(("forgotten", path, None)))
    _lightning.before_loading(strategy, lambda path: calls.append(("check", path, None)))
    assert strategy.load_checkpoint("a.ckpt", weights_only=True) == {"epoch": 1}
    assert calls == [("check", Path("a.ckpt"), None), ("load", "a.ckpt", True)]


def test_cli_parses_checkpoints_where_it_is_overridden() -> None:
    assert "_parse_ckpt_path" in inspect.getsource(LightningCLI.__init__)
    assert list(inspect.signature(LightningCLI._parse_ckpt_path).parameters) == ["self"]


def test_what_a_trial_puts_in_the_place_of_the_fits_own() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    owners = (trainer.fit_loop, trainer, trainer.strategy)
    before = [dict(vars(owner)) for owner in owners]
    loop = _lightning.TrialLoop(trainer, [], [], 8, 3)
    with loop.entered():
        changed = [
            {k for k, v in old.items() if vars(owner)[k] is not v} for owner, old in zip(owners, before, strict=True)
        ]
        assert changed[0] == {"epoch_loop", "epoch_progress", "max_batches"}
        assert changed[1] >= {"callbacks", "_loggers", "_logger_connector"}
        assert vars(trainer.strategy).keys() == before[2].keys()
        assert trainer.fit_loop.epoch_loop.batch_progress.current.ready == 3
        assert trainer.num_training_batches == 8
        assert trainer.global_step == 0
        assert list(inspect.signature(trainer.fit_loop.epoch_loop.advance).parameters) == ["data_fetcher"]
        loop.next_epoch()
        assert trainer.current_epoch == 1
    for owner, old in zip(owners, before, strict=True):
        assert vars(owner).keys() == old.keys()
        assert all(vars(owner)[k] is v for k, v in old.items())
    source = inspect.getsource(_TrainingEpochLoop.advance)
    for used in ("next(data_fetcher)", "data_fetcher.done", "increment_ready", "update_lr_schedulers"):
        assert used in source


@pytest.mark.parametrize("kind", [RichProgressBar, TQDMProgressBar])
def test_a_progress_bar_stands_still_in_a_trial(kind: type[ProgressBar]) -> None:
    bar = kind()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[bar])
    bar.setup(trainer, LightningModule(), "fit")
    with _lightning.TrialLoop(trainer, [], [], 8, 3).entered():
        stand_in = trainer.progress_bar_callback
        assert stand_in is not bar
        assert isinstance(stand_in, kind), "rich's thread asserts this while it draws"
        before = dict(vars(stand_in))
        for hook in ("on_train_start", "on_train_epoch_start", "on_train_epoch_end", "on_train_end", "teardown"):
            getattr(stand_in, hook)(trainer, LightningModule())
        stand_in.on_train_batch_end(trainer, LightningModule(), None, None, 0)
        assert vars(stand_in) == before
    assert trainer.progress_bar_callback is bar


def test_positions_and_loaders() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert _lightning.batches_begun(trainer) == 0
    trainer.training = True
    with _lightning.validating(trainer):
        assert trainer.validating
    assert trainer.training
    assert "setup_data" in dir(trainer.fit_loop.epoch_loop.val_loop)
    assert "_on_before_batch_transfer" in dir(LightningModule())


def test_what_signals_and_checkpoints_touch() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    assert "_signal_connector.register_signal_handlers()" in inspect.getsource(Trainer._run)
    assert callable(trainer._signal_connector.register_signal_handlers)
    loops.leave_signals_alone(trainer)
    trainer._signal_connector.register_signal_handlers()
    assert hasattr(trainer._accelerator_connector, "cluster_environment")
    assert loops.launched_ranks(trainer)[0]() == []
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    loops.validate_again(trainer)
    assert (progress.total.ready, progress.total.started, progress.total.processed) == (1, 1, 0)
    assert list(inspect.signature(trainer.fit_loop.epoch_loop._should_check_val_fx).parameters) == ["data_fetcher"]
    assert ModelCheckpoint(monitor="val/nll")._save_on_train_epoch_end is None
    for called in (WeightAveraging.on_validation_epoch_start, WeightAveraging.on_validation_epoch_end):
        assert "_swap_models(pl_module)" in inspect.getsource(called)


def test_the_averages_of_a_validation_are_known() -> None:
    callback = EMAWeightAveraging()
    saving.watch_swaps(callback)
    saving.watch_swaps(callback)
    callback._average_model = AveragedModel(LightningModule())
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback])
    callback.on_validation_epoch_start(trainer, LightningModule())
    assert callback.lightning_sft_swapped
    saving.swap_back(trainer, LightningModule())
    assert not callback.lightning_sft_swapped
