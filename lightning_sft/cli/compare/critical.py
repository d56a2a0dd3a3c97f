"""`lightning sweep critical`: a worker of a search for the critical learning rate, which trains nothing after it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from typing_extensions import override

from lightning_sft.callbacks import (
    CapabilityProbe,
    CriticalLearningRateFinder,
    FinalValidation,
    GenerationMonitor,
    SilentFailureMonitor,
)
from lightning_sft.callbacks.sweeping import SweepEnded
from lightning_sft.cli.lightning_cli import SFTCLI
from lightning_sft.errors import UserError


class _SearchCLI(SFTCLI):
    """A fit that ends with its search.

    Args:
        args: of the command line.
        storage: that workers share; None leaves that of the configuration.
        workers: how many share it; None leaves the number of the configuration.
    """

    def __init__(self, args: list[str], storage: str | None, workers: int | None) -> None:
        self._storage = storage
        self._workers = workers
        super().__init__(args)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[Callback] = list(trainer.callbacks)  # type: ignore[attr-defined]
        finders = [c for c in callbacks if isinstance(c, CriticalLearningRateFinder)]
        if len(finders) != 1:
            raise UserError(
                f"The configuration has {len(finders)} CriticalLearningRateFinder among trainer.callbacks. Allowed: "
                "one; configs/experiment/critical_lr.yaml shows it."
            )
        (finder,) = finders
        storage = self._storage or finder.storage
        workers = self._workers or finder.workers
        finder.share(storage, workers)
        finder.only = True
        kept = finder.keep_callbacks
        needed = [c for c in callbacks if c is finder or isinstance(c, ProgressBar) or type(c).__name__ in kept]
        # what would read the model before its first step, or at an end that does not come
        still = [CapabilityProbe(enabled=False), SilentFailureMonitor(enabled=False), FinalValidation(enabled=False)]
        trainer.callbacks = [*needed, *still, GenerationMonitor(samples=0, limit=0)]  # type: ignore[attr-defined]
        return trainer


def search(arguments: list[str], storage: str | None, workers: int | None) -> None:
    """Take part in a search until its bracket is found, and print it.

    Args:
        arguments: settings of ``fit``.
        storage: see `_SearchCLI`.
        workers: likewise.
    """
    try:
        _SearchCLI(["fit", *arguments], storage, workers)
    except SweepEnded:
        return
    raise UserError(
        "The run ended before its search: it has fewer steps than at_step of the CriticalLearningRateFinder."
    )
