"""The settings of ``fit`` for verbs of our own that build no trainer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_sft.cli.lightning_cli import SFTCLI
from lightning_sft.errors import UserError


class SettingsCLI(SFTCLI):
    """Reads what ``fit`` reads, the config.yaml of a run included, and builds model and data, but no trainer.

    The configuration may be meant for another machine.
    """

    #: whose options these are
    verb: ClassVar[str] = ""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        if self.verb:  # all settings of fit would stand in the usage, before the verb's own
            parser.usage = f"lightning {self.verb} [--config FILE ...] [--KEY VALUE ...]"
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="a checkpoint, 'last' or 'best'")
        parser.add_argument("--weights_only", type=bool | None, default=None, help="of fit; not used here")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return None  # type: ignore[return-value]  # nothing is run


def check_place(output: Path) -> None:
    """Raise where a new file or folder cannot be made, before minutes of work for it.

    Raises:
        UserError: what would hold it is no folder, or may not be written to.
    """
    output = output.expanduser().absolute()
    above = next(path for path in output.parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        why = "may not be written to" if above.is_dir() else "is a file"
        raise UserError(f"--output is {str(output)!r}, and {str(above)!r} {why}. Give another place.")
