"""LightningCLI with this package's classes, defaults, run folders and error messages."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import lightning.pytorch.callbacks
import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning_utilities.core.enums import StrEnum
from typing_extensions import override

import lightning_sft.callbacks
import lightning_sft.data
import lightning_sft.objectives  # these rooms are imported so that short class names resolve in configurations
from lightning_sft._lightning import ConfigurationWins
from lightning_sft._lightning.loops import launched_ranks
from lightning_sft.callbacks import LastCheckpoint, PredictionWriter, RunProgress, RunReport, RunStory, RunSummary
from lightning_sft.checkpoints import runs
from lightning_sft.checkpoints.slurm import slurm_job
from lightning_sft.cli import run_folders
from lightning_sft.cli.classes import OURS, Classes, choose_classes, with_classes
from lightning_sft.cli.devices import check_devices
from lightning_sft.cli.duplicates import refuse_duplicates
from lightning_sft.cli.front.say import nothing_for
from lightning_sft.cli.front.words import REPORT, expand
from lightning_sft.cli.next_commands import after_reading, listed, next_commands
from lightning_sft.cli.parser_errors import explain
from lightning_sft.cli.quiet import hold_back
from lightning_sft.cli.run_names import run_name
from lightning_sft.cli.spelt_out import forget_spelt_out
from lightning_sft.errors import UserError
from lightning_sft.files import write_text
from lightning_sft.places import CHECKPOINTS, RESUMED
from lightning_sft.training.signals import WATCH

# Defaults such as Timer's interval are names in an enumeration, which YAML would not write.
yaml.SafeDumper.add_multi_representer(StrEnum, lambda dumper, value: dumper.represent_str(str(value.value)))


class Parser(LightningArgumentParser):
    """A parser whose errors suggest the intended setting, and that takes files of data for data, not for settings."""

    @override
    def add_class_arguments(self, theclass: type, nested_key: str | None = None, **kwargs: Any) -> list[str]:
        if nested_key == "data":
            # else `--data.train rows.json` would be opened here, and what it holds taken for the setting itself
            kwargs["sub_configs"] = False
        return cast("list[str]", super().add_class_arguments(theclass, nested_key, **kwargs))

    @override
    def dump(self, namespace: Namespace, *args: Any, skip_default: bool = False, **kwargs: Any) -> str:
        if skip_default:
            namespace = namespace.clone()
            forget_spelt_out(namespace)
        return cast("str", super().dump(namespace, *args, skip_default=skip_default, **kwargs))

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        subparsers = [p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values()]
        keys = {action.dest for parser in (self, *subparsers) for action in parser._actions}
        raise UserError(explain(message, keys, known_classes())) from ex


def known_classes() -> dict[str, type]:
    """Return the classes that configurations may name by their short names."""
    rooms = (lightning_sft.objectives, lightning_sft.callbacks, lightning_sft.data, lightning.pytorch.callbacks)
    named = ((name, getattr(room, name)) for room in rooms for name in room.__all__)
    return {name: value for name, value in named if isinstance(value, type)}


class RunConfig(SaveConfigCallback):
    """Write config.yaml into the run's folder once training starts: a run that fails before leaves no folder."""

    def __init__(self, *args: Any, classes: Classes, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._classes = classes

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        lasts = [c.path for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)]
        folder = lasts[0].parent if lasts else runs.run_folder(trainer)
        if folder is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # such a run has no folder
        name = RESUMED.format(trainer.global_step) if trainer.ckpt_path else self.config_filename
        again = self.config.clone()
        again.ckpt_path = None  # so that the file starts a run of its own
        run_folders.forget_versions(again.trainer)
        place = folder.parent if folder.name == CHECKPOINTS else folder
        write_text(place / name, with_classes(self.parser.dump(again, skip_none=False), self._classes))


class SFTCLI(ConfigurationWins, LightningCLI):
    """LightningCLI for `SFTModule` and `SFTDataModule`.

    What it adds: ``best.ckpt`` by ``val/nll``, unless the configuration brings a ModelCheckpoint, and ``last.ckpt``
    by `LastCheckpoint`; a table of the held-out readings before and after; ``--ckpt_path last`` and
    ``best`` across runs, continued in their own folder; the configuration always beats what a checkpoint stored.
    """

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        hold_back()
        self._new_folders: list[Path] = []
        self._verb = args[0] if isinstance(args, list) and args else None
        self._reports = self._verb == "fit" and isinstance(args, list) and REPORT in args
        args = [arg for arg in args if arg != REPORT] if self._reports and isinstance(args, list) else args
        self._output: str | None = None
        if isinstance(args, list):
            args, self._output = run_folders.take_output(expand(args), self._verb)
        refuse_duplicates(args if isinstance(args, list) else [])
        classes, args = choose_classes(args) if isinstance(args, list) else (OURS, args)
        self._data_is_ours = classes["data"] is OURS["data"]
        self._folder: Path | None = None
        try:
            super().__init__(
                classes["model"],
                classes["data"],
                args=args,
                auto_configure_optimizers=False,
                seed_everything_default=42,
                parser_class=Parser,
                save_config_callback=RunConfig,
                save_config_kwargs={"classes": classes},
                **kwargs,
            )
        except BaseException:
            if hasattr(self, "trainer") and self.trainer.is_global_zero:
                for folder in self._new_folders:
                    runs.remove_unstarted(folder)
            raise

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static there, and asked through self
        # a parser costs a quarter of a second of processor time: only that of the verb at hand is made
        every = LightningCLI.subcommands()
        return {self._verb: every[self._verb]} if self._verb in every else every

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        # without the warning about sys.argv: args are always given here
        self.config = parser.parse_args(cast("list[str] | None", args))

    @override
    def before_instantiate_classes(self) -> None:
        if self.subcommand is None:
            return
        config = self.config[self.subcommand]
        if config.trainer.accumulate_grad_batches < 1:
            given = config.trainer.accumulate_grad_batches
            raise UserError(f"trainer.accumulate_grad_batches is {given}. Allowed: 1 or more.")
        check_devices(config.trainer)
        if "verbose" in config:
            config.verbose = False  # RunSummary has the table of validate and test
        if self._data_is_ours:
            _refuse_nothing(self.subcommand, config.get("data"))
        trainer = config.trainer
        if self._output is not None and self.subcommand != "predict":
            run_folders.put_into(trainer, self._output)
        which = config.get("ckpt_path") or (self._requeued(trainer) if self.subcommand == "fit" else None)
        if not which:
            if self.subcommand == "fit":
                self._folder = run_folders.start(trainer, run_name(config, run_folders.roots(trainer)))
            return
        found = runs.find_checkpoint(str(which), run_folders.roots(trainer), run_folders.checkpoint_folders(trainer))
        config.ckpt_path = str(found)
        if found.is_dir() and not _reads_folders(trainer.strategy):
            raise UserError(
                f"--ckpt_path is {str(found)!r}, a folder with a file of each rank, which this run's strategy "
                "does not read. Use the strategy that wrote it (config.yaml of its run), or start from its weights: "
                "`lightning-sft export` writes a model folder for --model.model_name_or_path."
            )
        if self.subcommand != "fit":
            run_folders.tell_other_settings(str(which), found, config)
            # ModelCheckpoint's remark that it will not continue the other run's list of best models
            warnings.filterwarnings("ignore", message="The dirpath has changed from")
        # The run goes on in its own folder, which naturally holds its checkpoints.
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        self._folder = run_folders.go_on(trainer, found, self.subcommand)

    def _requeued(self, trainer: Namespace) -> Path | None:
        """Return the checkpoint that this SLURM job wrote before it was requeued."""
        job = slurm_job()
        places = run_folders.roots(trainer), run_folders.checkpoint_folders(trainer)
        return runs.find_requeued(job, *places) if job else None

    @override
    def instantiate_classes(self) -> None:
        try:
            with warnings.catch_warnings():
                # jsonargparse spells out LoraConfig's default of loftq_config, and peft warns that it was given
                warnings.filterwarnings("ignore", message="`loftq_config` specified but will be ignored")
                super().instantiate_classes()
        except ValueError as error:  # jsonargparse wraps what a constructor says
            if isinstance(error, UserError):
                raise
            raise UserError(explain(str(error), (), known_classes())) from error

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand] if self.subcommand else self.config_init
        configured = config.trainer.callbacks or []
        callbacks: list[Callback] = list(configured) if isinstance(configured, list) else [configured]
        if config.trainer.enable_checkpointing is not False and not config.trainer.barebones:
            given = tuple(type(c) for c in callbacks)
            callbacks += [] if any(issubclass(c, ModelCheckpoint) for c in given) else [_best_checkpoint()]
            callbacks += [] if any(issubclass(c, LastCheckpoint) for c in given) else [LastCheckpoint()]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint | LastCheckpoint) and self._folder and callback.dirpath is None:
                callback.dirpath = str(self._folder / CHECKPOINTS)
        if not any(isinstance(c, RunStory) for c in callbacks):
            callbacks.append(RunStory())
        for callback in callbacks:
            if isinstance(callback, RunStory):
                callback.next_commands = next_commands
                callback.after_reading = lambda verb, checkpoint: listed(after_reading(verb, checkpoint))
        if not any(isinstance(c, RunSummary) for c in callbacks):
            callbacks.append(RunSummary())
        for callback in callbacks:
            if isinstance(callback, RunSummary):
                callback.evaluations = True
        callbacks += missing_bar(config.trainer, callbacks)
        if config.trainer.enable_model_summary is None:
            kwargs["enable_model_summary"] = False  # RunStory says what it would
        if self._reports and not any(isinstance(c, RunReport) for c in callbacks):
            callbacks.append(RunReport())
        if self.subcommand == "predict":
            callbacks += writers(callbacks, self._output)
            kwargs["logger"] = False  # it logs nothing, and a logger would leave an empty file of curves
        trainer = super().instantiate_trainer(**{"callbacks": callbacks, **kwargs})
        WATCH.ranks, WATCH.only_waits = launched_ranks(trainer)
        folders = [Path(logger.log_dir) for logger in trainer.loggers if logger.log_dir]
        self._new_folders = [folder for folder in folders if not folder.exists()]
        return trainer


def missing_bar(trainer: Namespace, callbacks: Sequence[Callback]) -> list[Callback]:
    """Return our progress bar, where none is configured and bars are not turned off."""
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    return [] if has_bar or trainer.enable_progress_bar is False or trainer.barebones else [RunProgress()]


def writers(callbacks: Sequence[Callback], output: str | None) -> list[Callback]:
    """Return what writes the answers of ``predict``, where none is configured; told where, by ``--output``.

    Args:
        callbacks: that are configured.
        output: the file to write; None leaves it to the writer.

    Raises:
        UserError: the file exists, or the writer that is configured is not ours.
    """
    ours = [c for c in callbacks if isinstance(c, PredictionWriter)]
    other = next((type(c).__name__ for c in callbacks if isinstance(c, BasePredictionWriter)), None)
    if output is not None and other is not None and not ours:
        raise UserError(
            f"--output is {output!r}, and the answers are written by {other}, which has a place of its own. Leave out "
            "--output, or that callback."
        )
    made = [] if ours or other is not None else [PredictionWriter()]
    for writer in (*ours, *made):
        writer.path = writer.path if output is None else Path(output).expanduser()
        writer.require_free()
    return [*made]


def _refuse_nothing(verb: str, data: Namespace | None) -> None:
    """Raise if a verb has no rows to work on."""
    key = {"fit": "train", "validate": "val"}.get(verb, verb)
    given = data or Namespace()
    if given.get(key) or (key == "val" and given.get("train") and given.get("val_split")):
        return
    raise UserError(nothing_for(verb))


def _best_checkpoint() -> Callback:
    return ModelCheckpoint(
        filename="best", monitor="val/nll", mode="min", save_on_train_epoch_end=False, enable_version_counter=False
    )


def _reads_folders(strategy: str | Namespace) -> bool:
    """Return whether a strategy, as configured, may write and read folders instead of files."""
    name = strategy if isinstance(strategy, str) else str(strategy.class_path)
    return any(part in name.lower() for part in ("modelparallel", "fsdp", "deepspeed"))
