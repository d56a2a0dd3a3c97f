"""Every private or untyped attribute of Lightning that the package touches, in one room.

tests/test_private_lightning.py fails loudly when Lightning changes one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ProgressBar
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector
from torch import Tensor
from typing_extensions import Self


def made_by_cli() -> bool:
    """Return whether a module is being built by LightningCLI, which hands over its settings as plain data."""
    return _given_hyperparameters.get() is not None


def attached_trainer(module: LightningModule) -> Trainer | None:
    """Return the trainer of a module, or None; the public property raises when there is none."""
    return module._trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the callbacks of a trainer: public, but set by a connector that type checkers do not see."""
    untyped: Any = trainer
    return cast("list[Callback]", untyped.callbacks)


def has_hook(trainer: Trainer, name: str, callbacks: Sequence[Callback] | None = None) -> bool:
    """Return whether the trainer's module or one of its callbacks (or of those given) has a hook of its own."""
    given = callbacks_of(trainer) if callbacks is None else callbacks
    owners: list[tuple[type, type]] = [(type(c), Callback) for c in given]
    owners += [(type(trainer.lightning_module), LightningModule)]
    return any(getattr(kind, name) is not getattr(base, name) for kind, base in owners)


def data_parallel_size_and_rank(trainer: Trainer | None) -> tuple[int, int]:
    """Return among how many ranks the rows are shared out, and this one's place: ranks that split layers count once.

    Without a trainer, or on one device, there is one.
    """
    kwargs = (None if trainer is None else trainer.distributed_sampler_kwargs) or {}
    return kwargs.get("num_replicas", 1), kwargs.get("rank", 0)


def log_interval(trainer: Trainer) -> int:
    """Return ``log_every_n_steps``, at least 1: public, but set by a connector that type checkers do not see."""
    untyped: Any = trainer
    return max(int(untyped.log_every_n_steps), 1)


def all_gather(module: LightningModule) -> Callable[[Tensor], Tensor]:
    """Return the module's gather over ranks, for tensors: (...) to (world_size, ...)."""
    return cast("Callable[[Tensor], Tensor]", module.all_gather)


def sizes_are_auto(strategy: ModelParallelStrategy) -> bool:
    """Return whether the strategy is to choose one of its sizes by itself; it forgets this when it sets up."""
    return "auto" in (strategy._data_parallel_size, strategy._tensor_parallel_size)


def before_loading(strategy: ModelParallelStrategy, check: Callable[[Path], None]) -> None:
    """Call ``check`` on a checkpoint before the strategy loads from it; no Lightning hook is early enough.

    Args:
        strategy: replaces its public ``load_checkpoint``, whoever replaced it before.
        check: gets the path, on every rank.
    """

    def load_checkpoint(checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        check(Path(checkpoint_path))
        return ModelParallelStrategy.load_checkpoint(strategy, checkpoint_path, weights_only=weights_only)

    strategy.load_checkpoint = load_checkpoint  # type: ignore[method-assign]


class ConfigurationWins:
    """A mixin for LightningCLI: a checkpoint's stored settings do not override files and command line."""

    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as the user gave it."""


def state_key_of(callback: Callback, **settings: Any) -> str:
    """Return the key of a callback's state in checkpoints, for one that may be there several times."""
    return callback._generate_state_key(**settings)


def accumulation(trainer: Trainer) -> int | str:
    """Return ``accumulate_grad_batches``, or the schedule of epochs that a GradientAccumulationScheduler follows."""
    schedules = [c.scheduling for c in callbacks_of(trainer) if isinstance(c, GradientAccumulationScheduler)]
    several = [s for s in schedules if len(s) > 1]
    return str(several[0]) if several else trainer.accumulate_grad_batches


def is_told(trainer: Trainer | None) -> bool:
    """Return whether a callback tells what a run will do, so that others need not."""
    return trainer is not None and any(getattr(c, "tells_the_run", False) for c in callbacks_of(trainer))


def step_is_complete(trainer: Trainer) -> bool:
    """Return whether the micro-batch under way ends an optimizer step of automatic optimization."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


class TrialLoop:
    """Training steps through Lightning's own epoch loop, beside the fit that is under way.

    While `entered`, the trainer has a fresh epoch loop (whose counters go on from the fit's), fresh metrics, the given
    loggers and only the given callbacks; the fit's own objects are put aside, untouched. Hooks, accumulation,
    precision, gradient synchronisation, clipping and schedulers are those of ``Trainer.fit``.

    Args:
        trainer: in a fit, between two optimizer steps.
        callbacks: those that stay alive.
        loggers: in the place of the fit's own.
        batches: micro-batches of an epoch; ``inf`` if unknown.
        batches_done: micro-batches of the present epoch that have been trained on.
    """

    def __init__(
        self,
        trainer: Trainer,
        callbacks: Sequence[Callback],
        loggers: Sequence[Logger],
        batches: float,
        batches_done: int,
    ) -> None:
        fit: Any = trainer.fit_loop
        old = fit.epoch_loop
        self._trainer: Any = trainer
        self._loop = loop = _TrainingEpochLoop(trainer, fit.min_steps, -1)
        loop.batch_progress = deepcopy(old.batch_progress)
        loop.scheduler_progress = deepcopy(old.scheduler_progress)
        loop.automatic_optimization.optim_progress = deepcopy(old.automatic_optimization.optim_progress)
        loop.manual_optimization.optim_step_progress = deepcopy(old.manual_optimization.optim_step_progress)
        for count in ("ready", "started", "processed", "completed"):
            setattr(loop.batch_progress.current, count, batches_done)
        loop.batch_progress.is_last_batch = False
        progress = deepcopy(fit.epoch_progress)
        self._fit_state = {"epoch_loop": loop, "epoch_progress": progress, "max_batches": batches}
        bars = [_still(c) for c in callbacks_of(trainer) if isinstance(c, ProgressBar) and c not in callbacks]
        self._trainer_state = {"callbacks": [*callbacks, *bars], "_loggers": [*loggers], "should_stop": False}
        self._trainer_state["_logger_connector"] = _LoggerConnector(trainer)

    @contextmanager
    def entered(self) -> Iterator[Self]:
        """Put this loop in the place of the fit's for as long as the context lasts."""
        owners = [(self._trainer.fit_loop, self._fit_state), (self._trainer, self._trainer_state)]
        before = [(owner, {k: getattr(owner, k) for k in new}, new) for owner, new in owners]
        for owner, _, new in before:
            vars(owner).update(new)
        try:
            yield self
        finally:
            for owner, old, _ in before:
                vars(owner).update(old)
            self._trainer.training = True

    def micro_batch(self, batch: Any, is_last: bool) -> bool:
        """Train on a micro-batch, and return whether it completed an optimizer step.

        Args:
            batch: as a data loader hands it out.
            is_last: whether the epoch ends with it.
        """
        self._loop.advance(_OneBatch(batch, is_last))  # type: ignore[arg-type]  # all that the loop asks a fetcher for
        return not self._loop._should_accumulate()

    def next_epoch(self) -> None:
        """Count an epoch and start the next."""
        self._fit_state["epoch_progress"].increment_by(1)
        loop = self._loop
        for counted in (loop.batch_progress, loop.scheduler_progress, loop.automatic_optimization.optim_progress):
            counted.reset_on_run()


def _still(bar: ProgressBar) -> ProgressBar:
    """Return a stand-in for a progress bar that no hook moves; rich's thread goes on drawing and needs one."""
    hooks = {name: _nothing for name in dir(Callback) if name.startswith("on_") or name in ("setup", "teardown")}
    stand_in: ProgressBar = object.__new__(type(type(bar).__name__, (type(bar),), hooks))
    vars(stand_in).update(vars(bar))
    return stand_in


def _nothing(self: Callback, *args: Any, **kwargs: Any) -> None:
    """Ignore a hook."""


class _OneBatch:
    """The data-fetcher interface of an epoch loop, around one batch."""

    def __init__(self, batch: Any, done: bool) -> None:
        self._batch = batch
        self.done = done

    def __next__(self) -> tuple[Any, int, int]:
        return self._batch, 0, 0


def batches_begun(trainer: Trainer) -> int:
    """Return the micro-batches of the present epoch that were handed to the loop, the one under way included."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


@contextmanager
def validating(trainer: Trainer) -> Iterator[None]:
    """Mark a fit as validating, so that what a validation step logs is kept apart from training."""
    trainer.validating = True
    try:
        yield
    finally:
        trainer.training = True


def validation_loaders(trainer: Trainer) -> Any:
    """Return the validation loaders of a fit, prepared now if no validation has run yet; None without any."""
    if trainer.val_dataloaders is None and trainer.enable_validation:
        with validating(trainer):
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
    return trainer.val_dataloaders


def to_device(trainer: Trainer, batch: Any) -> Any:
    """Return a batch where the model is, through the hooks that Lightning's loops call."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
