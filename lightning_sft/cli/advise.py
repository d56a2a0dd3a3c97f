"""`lightning advise`: the data, where the model stands, which objective, the rate and the cost, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_sft.advice.cost import StepClock, cost_of_fit, time_steps
from lightning_sft.advice.options import without
from lightning_sft.advice.page import Survey
from lightning_sft.advice.rate import judge_rate
from lightning_sft.advice.setup import read_setup
from lightning_sft.callbacks import CapabilityProbe
from lightning_sft.cli.before import BeforeCLI, Begun, scratch
from lightning_sft.cli.estimate import planned
from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.settings import check_place
from lightning_sft.data.inspect import show, summaries, training_weights
from lightning_sft.errors import UserError
from lightning_sft.estimate.page import describe, to_dict
from lightning_sft.files import to_json, write_text
from lightning_sft.metrics.capability_reading import FILE, save_reading
from lightning_sft.report.plain_text import shown
from lightning_sft.sweep.range_test import range_test
from lightning_sft.sweep.session import SweepSettings
from lightning_sft.units import plural

PARTS = ("data", "capability", "cost", "rate", "memory")
_TRAINED = {"capability", "cost", "rate"}  # parts that need a trainer
PAGE = "advice.md"
#: training rows that the page shows, and how many characters of either end of a long one
EXAMPLES, SHOWN = 2, 800
#: options of this verb, which the command to run next does not take
_OWN = ("--skip", "--output", "--rows", "--steps", "--range_steps", "--range_low", "--range_high")


class _AdviseCLI(BeforeCLI):
    """The settings of ``fit`` with a trainer that measures and keeps nothing."""

    verb = "advise"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--skip", type=str, default="", help=f"parts to leave out, with commas between, of "
            f"{','.join(PARTS)}. Default: none")  # fmt: skip
        add("--output", type=str, default="advice", help="folder for advice.md, advice.json and capability.json")
        add("--rows", type=int | None, default=200, help="training rows from which is read what the model knows of the "
            "task; null reads all")  # fmt: skip
        add("--range_steps", type=int, default=30, help="steps of the range test, which tries a learning rate at each; "
            "they are timed, too")  # fmt: skip
        add("--range_low", type=float, default=1e-6, help="first learning rate of the range test, or a tenth of yours "
            "where that is lower")  # fmt: skip
        add("--range_high", type=float, default=1.0, help="last learning rate of the range test, or ten times yours "
            "where that is higher")  # fmt: skip
        add("--steps", type=int, default=4, help="optimizer steps to time with --skip rate")

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init
        skipped = check_skip(config.skip)
        if skipped >= _TRAINED:
            return None  # type: ignore[return-value]  # the others need none
        probe = CapabilityProbe(config.rows, most_share=None, enabled="capability" not in skipped)
        for callback in self.given_callbacks:
            if isinstance(callback, CapabilityProbe):
                probe.cut_offs = callback.cut_offs
        self.surveyor = _Surveyor(skipped, config, probe)
        return self.keep_nothing([probe, self.surveyor], **kwargs)


class _Surveyor(Callback):
    """Measures before the first step, and ends the fit there."""

    def __init__(self, skipped: set[str], config: Any, probe: CapabilityProbe) -> None:
        self.skipped = skipped
        self.config = config
        self.probe = probe
        self.survey: Survey | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.probe.enabled:
            report = getattr(trainer.datamodule, "report", {}).get("train")  # type: ignore[attr-defined]
            rows = [rows for rows in (self.config.rows, report and report.rows) if rows is not None]
            which = plural(min(rows), "row") if rows else "all rows"
            rank_zero_info(f"Reading what the model thinks of {which} ...")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self.survey is not None
        survey, reading = self.survey, self.probe.start
        survey.capability = reading
        rate = float(trainer.optimizers[0].param_groups[0].get("initial_lr", 0.0))
        rate = rate or float(trainer.optimizers[0].param_groups[0]["lr"])
        survey.setup = read_setup(trainer, pl_module, rate)
        taken: list[float] = []
        if "rate" not in self.skipped:
            clock = StepClock()
            low, high = min(self.config.range_low, rate / 10), max(self.config.range_high, rate * 10)
            rank_zero_info(f"Trying {self.config.range_steps} learning rates from {low:.2g} to {high:.2g} ...")
            setting = SweepSettings("range", self.config.range_steps, None)
            found = range_test(trainer, pl_module, setting, low=low, high=high, observers=[clock])
            survey.rate = judge_rate(rate, found, None if reading is None else reading.all.nll)
            taken = clock.steps()
        if "cost" not in self.skipped:
            if len(taken) < self.config.steps:  # as where a range test diverges at once
                rank_zero_info(f"Timing {self.config.steps} optimizer steps ...")
                taken = time_steps(trainer, pl_module, self.config.steps, rate)
            first = self.config.trainer.num_sanity_val_steps == -1
            seconds = self._validation_seconds(trainer)
            survey.cost = cost_of_fit(trainer, pl_module, taken, seconds, validates_first=first)
        raise Begun

    def _validation_seconds(self, trainer: Trainer) -> float | None:
        """Return what a validation takes, by the time that reading training rows took; None if that was left out."""
        reports, reading = getattr(trainer.datamodule, "report", {}), self.probe.start  # type: ignore[attr-defined]
        if reading is None or "val" not in reports or self.probe.seconds is None:
            return None
        return float(self.probe.seconds / reading.all.rows * reports["val"].rows)


def check_skip(skip: str) -> set[str]:
    """Return the parts to leave out.

    Raises:
        UserError: an unknown part, or all of them.
    """
    skipped = {part.strip() for part in skip.split(",") if part.strip()}
    unknown = sorted(skipped - set(PARTS))
    if unknown or skipped == set(PARTS):
        what = f"names {', '.join(unknown)}" if unknown else "leaves nothing to do"
        raise UserError(f"--skip {skip} {what}. Allowed: some of {', '.join(PARTS)}, with commas between.")
    return skipped


def options_of_run(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without the options of this verb."""
    return without(arguments, _OWN)


def advise(arguments: list[str]) -> None:
    """Print a page about a run that has not begun, and write it beside its parts as JSON."""
    with scratch("advise") as folder:
        cli = _AdviseCLI(arguments, folder)
        skipped = check_skip(cli.config.skip)
        _check_numbers(cli.config)
        check_place(Path(cli.config.output) / PAGE)
        survey = Survey(options_of_run(arguments))
        if "data" not in skipped:
            rank_zero_info("Reading the data ...")
            cli.datamodule.tokenizer = cli.model.tokenizer
            cli.datamodule.setup("fit")
            survey.data = summaries(cli.datamodule.report)
            survey.counts = {what: report.counts() for what, report in cli.datamodule.report.items()}
            survey.examples = _examples(cli.datamodule, cli.model.tokenizer)
        if cli.trainer is not None:
            cli.surveyor.survey = survey
            cli.look()
            if not cli.trainer.is_global_zero:
                return
        if "memory" not in skipped:
            survey.memory = _memory(cli)
    page = survey.markdown()
    output = Path(cli.config.output)
    write_text(output / PAGE, page)
    write_text(output / "advice.json", to_json(survey.to_dict(), indent=1) + "\n")
    if survey.capability is not None:
        save_reading(output / FILE, survey.capability, None)
    print(shown(page))
    print(f"This page is {output / PAGE}; its parts as JSON: {output / 'advice.json'}")


def _memory(cli: _AdviseCLI) -> Mapping[str, Any]:
    """Return what `lightning estimate` says of the run, as text and as plain data."""
    rank_zero_info("Estimating the memory of a device ...")
    if "train" not in cli.datamodule.report:
        cli.datamodule.tokenizer = cli.model.tokenizer
        cli.datamodule.setup("fit")
    try:
        run = planned(cli.model, cli.config, int(cli.datamodule.report["train"].lengths.max()))
        return {"text": describe(run, (), None), **to_dict(run, None)}
    except UserError as error:  # an architecture that cannot be tried without data
        return {"text": str(error)}


def _examples(datamodule: Any, tokenizer: Any) -> list[str]:
    """Return the first training rows as text, with the trained tokens marked; long ones without their middle."""
    texts = []
    for index in range(min(EXAMPLES, len(datamodule.dataset("train")))):
        row = datamodule.dataset("train")[index]
        text = show(tokenizer, row.ids, row.trained, False, training_weights(datamodule, row)).rstrip("\n")
        cut = len(text) - 2 * SHOWN
        texts.append(f"{text[:SHOWN]}\n[... {cut} characters ...]\n{text[-SHOWN:]}" if cut > 0 else text)
    return texts


def _check_numbers(config: Any) -> None:
    require_options("advise", config)
    if not 0 < config.range_low < config.range_high:
        raise UserError(
            f"--range_low is {config.range_low} and --range_high {config.range_high}. Allowed: 0 < low < high."
        )
