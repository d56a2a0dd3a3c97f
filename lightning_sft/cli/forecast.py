"""`lightning forecast`: after how many steps of a run each probe flips, before the run is made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_sft.advice.options import files_first, without
from lightning_sft.callbacks import CapabilityProbe, ExposureForecast, SilentFailureMonitor
from lightning_sft.cli.before import BeforeCLI, Begun, scratch
from lightning_sft.cli.next_commands import listed
from lightning_sft.cli.settings import check_place
from lightning_sft.files import write_text
from lightning_sft.report.plain_text import shown
from lightning_sft.sweep.forecast.result import Forecast

#: arguments of `ExposureForecast` that are options; the configuration's own callback gives those that are left out
_OPTIONS = ("probes", "stretch", "share")


class _ForecastCLI(BeforeCLI):
    """The settings of ``fit`` with a trainer that forecasts and keeps nothing."""

    verb = "forecast"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--probes", type=str | None, default=None, help="library:train, library:test, library (both parts of the "
            "shipped probes), or a file such as a run's silent.jsonl. Default: those of an ExposureForecast in the "
            "settings, otherwise library:train")  # fmt: skip
        add("--stretch", type=int | None, default=None, help="optimizer steps of the longest short run, 8 or more. "
            "Default: 32")  # fmt: skip
        add("--share", type=float | None, default=None, help="also say at which peak learning rate this "
            "share of the probes would flip by the end. Default: 0.5")  # fmt: skip
        add("--output", type=str, default="forecast.json", help="file to write: the whole forecast as JSON")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init
        found = next((c for c in self.given_callbacks if isinstance(c, ExposureForecast)), None)
        self.has_own, own = found is not None, found or ExposureForecast()
        options = {name: getattr(own, name) if config[name] is None else config[name] for name in _OPTIONS}
        self.forecaster = _Forecaster(**options, divergence=own.divergence)
        off = [CapabilityProbe(enabled=False), SilentFailureMonitor(enabled=False)]
        return self.keep_nothing([*off, self.forecaster], **kwargs)


class _Forecaster(ExposureForecast):
    """Forecasts before the first step, and ends the fit there."""

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.result = self.sweep(trainer, pl_module, None)
        raise Begun

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Say nothing: the end is wanted."""


def forecast(arguments: list[str]) -> None:
    """Print at which step of a run each probe flips, and write it as JSON; the run itself is not made."""
    with scratch("forecast") as folder:
        cli = _ForecastCLI(arguments, folder)
        output = Path(cli.config.output).expanduser()
        check_place(output)
        rank_zero_info("Loading the model and its rows, then taking short runs ...")
        cli.look()
        result = cli.forecaster.result
        if not cli.trainer.is_global_zero or not isinstance(result, Forecast):
            return
    write_text(output, result.to_json() + "\n")
    print(shown(result.text()))
    print(f"\nAll of it as JSON: {output}")
    if cli.has_own and (apart := [f"--{name} {cli.config[name]}" for name in _OPTIONS if cli.config[name] is not None]):
        whose = "Only this forecast has them; the run below forecasts by the ExposureForecast of its settings"
        print(f"\n{whose}: {', '.join(apart)}.")
    print(listed(next_of(arguments, cli.config, has_own=cli.has_own)))


def next_of(arguments: Sequence[str], config: Any, *, has_own: bool) -> list[str]:
    """Return what one types after a forecast: the run itself, which is forecast once more and grades that at its end.

    Args:
        arguments: of this verb.
        config: as they were parsed.
        has_own: whether the configuration has an `ExposureForecast`.
    """
    given = {name: config[name] for name in _OPTIONS if config[name] is not None}
    callback = "" if has_own else " --trainer.callbacks+=ExposureForecast"
    options = [f" --trainer.callbacks.{name} {shlex.quote(str(value))}" for name, value in given.items()]
    run = shlex.join(files_first(without(arguments, [f"--{name}" for name in (*_OPTIONS, "output")])))
    return [f"lightning fit {run}{callback}{'' if has_own else ''.join(options)}"]
