"""Our own verbs, each a function of the arguments after the verb."""

from __future__ import annotations

import shlex
import sys

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_sft.advice.options import files_first, without
from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.next_commands import listed
from lightning_sft.cli.settings import SettingsCLI
from lightning_sft.data.inspect import inspect as describe


class _InspectCLI(SettingsCLI):
    """The settings of ``fit`` and those of the verb."""

    verb = "inspect"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--rows", type=int, default=3, help="rows of the training data to show")
        parser.add_argument(
            "--color",
            type=bool,
            default=sys.stdout.isatty(),
            help="mark trained tokens by colour, in place of signs around them. Default: true in a terminal",
        )


def inspect(arguments: list[str]) -> None:
    """Print rows as the model will see them; loads tokenizer and data, never the model's weights."""
    cli = _InspectCLI(args=arguments, run=False)
    require_options("inspect", cli.config)
    print(describe(cli.datamodule, cli.model.tokenizer, cli.config.rows, cli.config.color).rstrip("\n"))
    same = files_first(without(arguments, ["--rows", "--color"]))
    print(listed([shlex.join(["lightning", verb, *same]) for verb in ("advise", "fit")]))
