"""The settings of ``fit`` for verbs of our own that build no trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_sft.cli.lightning_cli import SFTCLI


class SettingsCLI(SFTCLI):
    """Reads what ``fit`` reads, the config.yaml of a run included, and builds model and data, but no trainer.

    The configuration may be meant for another machine.
    """

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="a checkpoint, 'last' or 'best'")
        parser.add_argument("--weights_only", type=bool | None, default=None, help="of fit; not used here")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return None  # type: ignore[return-value]  # nothing is run
