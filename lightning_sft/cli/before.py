"""The settings of ``fit`` for verbs that look at a run before its first step, and keep nothing of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningCLI

from lightning_sft.callbacks import FinalValidation, GenerationMonitor
from lightning_sft.cli.lightning_cli import missing_bar
from lightning_sft.cli.settings import SettingsCLI


class Begun(Exception):
    """The first step would begin: the fit ends here."""


class BeforeCLI(SettingsCLI):
    """Builds a trainer without logger, checkpoints, or callbacks but those of the verb; its fit ends by `Begun`.

    Args:
        arguments: of the command line.
        scratch: folder of whatever would be written; see `scratch`.
    """

    def __init__(self, arguments: list[str], scratch: str) -> None:
        self._scratch = scratch
        super().__init__(args=arguments, run=False)

    @property
    def given_callbacks(self) -> list[Callback]:
        """The callbacks of the configuration."""
        given = self.config_init.trainer.callbacks or []
        return list(given) if isinstance(given, list) else [given]

    def keep_nothing(self, callbacks: Sequence[Callback], **kwargs: Any) -> Trainer:
        """Return the trainer with the callbacks of a verb; of the configuration's own it has the progress bar."""
        bars: list[Callback] = [c for c in self.given_callbacks if isinstance(c, ProgressBar)]
        bars += missing_bar(self.config_init.trainer, bars)
        off = [GenerationMonitor(samples=0, limit=0), FinalValidation(enabled=False)]
        nothing = {
            "logger": False,
            "enable_checkpointing": False,
            "default_root_dir": self._scratch,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "callbacks": [*off, *bars, *callbacks],
        }
        return LightningCLI.instantiate_trainer(self, **{**kwargs, **nothing})

    def look(self) -> None:
        """Begin the fit, until a callback of the verb ends it by `Begun`."""
        try:
            self.trainer.fit(self.model, datamodule=self.datamodule)
        except Begun:
            pass


@contextmanager
def scratch(verb: str) -> Iterator[str]:
    """Give a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"lightning_sft_{verb}_") as folder:
        yield folder
