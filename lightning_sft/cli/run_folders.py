"""Where a run of the command line keeps its files, and how it goes on in them: settings of loggers and folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only

from lightning_sft.checkpoints import runs
from lightning_sft.checkpoints.read import read_checkpoint
from lightning_sft.cli.front.words import join, split
from lightning_sft.cli.verbs import LIGHTNING_VERBS
from lightning_sft.errors import UserError
from lightning_sft.places import CHECKPOINT_WORDS, CHECKPOINTS, RUN_SETTINGS, near, newest_settings, run_of
from lightning_sft.progress import note

TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"
CSV = "lightning.pytorch.loggers.CSVLogger"
WANDB = "lightning.pytorch.loggers.WandbLogger"
#: differences between a run's settings and those given that are named
MOST_TOLD = 3
#: loggers that keep a run in ``save_dir/name/version``
VERSIONED = (TENSORBOARD, CSV)


def spell_out_loggers(trainer: Namespace) -> list[Namespace]:
    """Return the configurations of a trainer's loggers; Lightning's default logger is spelled out there first."""
    if trainer.logger is True or (trainer.logger is None and not (trainer.fast_dev_run or trainer.barebones)):
        arguments = Namespace(save_dir=trainer.default_root_dir or ".", name=runs.LOGS, version=None)
        arguments.default_hp_metric = False
        trainer.logger = Namespace(class_path=TENSORBOARD, init_args=arguments)
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    return [x for x in loggers if isinstance(x, Namespace)]


def take_output(arguments: Sequence[str], verb: str | None) -> tuple[list[str], str | None]:
    """Return arguments without ``--output``, and what it says: where a Lightning verb writes.

    That is the folder that keeps runs; of ``predict``, the file of its answers.

    Raises:
        UserError: it has no value.
    """
    if verb not in LIGHTNING_VERBS:
        return list(arguments), None
    found: str | None = None
    rest = []
    for name, values, joined in split(arguments):
        if name != "--output":
            rest.append((name, values, joined))
        elif not values:
            what = "file to write the answers to" if verb == "predict" else "folder to keep runs in"
            raise UserError(f"--output has no value. Give the {what}.")
        else:
            found = values[0]
    return join(rest), found


def put_into(trainer: Namespace, output: str) -> None:
    """Let a run keep its files in a folder of its own right below ``output``, whatever its loggers were given.

    Args:
        trainer: its configuration, which is changed.
        output: the folder in which runs lie side by side.
    """
    above, name = str(Path(output).parent), Path(output).name
    trainer.default_root_dir = output
    for logger in spell_out_loggers(trainer):
        if logger.class_path in VERSIONED:
            logger.init_args.save_dir, logger.init_args.name = above, name
        elif logger.class_path == WANDB:
            logger.init_args.save_dir = output


def forget_versions(trainer: Namespace) -> None:
    """Leave out which version a run has, so that its configuration starts a run of its own."""
    for logger in spell_out_loggers(trainer):
        if logger.class_path in (*VERSIONED, WANDB):
            logger.init_args.version = None


def roots(trainer: Namespace) -> list[Path]:
    """Return the folders below which a configuration's runs lie: one for each logger, one without any."""
    loggers = spell_out_loggers(trainer)
    found = [_root(trainer, logger) for logger in loggers]
    return list(dict.fromkeys(found)) or [Path(trainer.default_root_dir or ".") / runs.LOGS]


def checkpoint_folders(trainer: Namespace) -> list[Path]:
    """Return the folders that callbacks of a configuration write checkpoints to."""
    callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
    arguments = [c.init_args for c in callbacks if isinstance(c, Namespace) and "init_args" in c]
    older = Path(trainer.default_root_dir or ".") / CHECKPOINTS  # of runs without a logger in Python
    return [Path(a.dirpath) for a in arguments if a.get("dirpath")] + [older]


def start(trainer: Namespace, name: str | None = None) -> Path | None:
    """Give a new run its folders: the same name for all loggers, so that each is found again.

    Args:
        trainer: its configuration, which is changed.
        name: of the run; None numbers it as ``version_N``.

    Returns:
        The run's folder if it has no logger, else None.
    """
    loggers = spell_out_loggers(trainer)
    if not loggers and not trainer.fast_dev_run:
        root = roots(trainer)[0]
        return root / (name or f"version_{runs.next_version([root])}")
    versioned = [logger for logger in loggers if logger.class_path in VERSIONED]
    if name is not None or len(versioned) > 1:
        version = name or runs.next_version([_root(trainer, logger) for logger in versioned])
        for logger in versioned:
            if logger.init_args.version is None:
                logger.init_args.version = version
    return None


def go_on(trainer: Namespace, checkpoint: Path, verb: str) -> Path | None:
    """Let a run go on in the folders of the run that a checkpoint belongs to.

    Args:
        trainer: its configuration, which is changed.
        checkpoint: to go on from.
        verb: ``fit`` adds to the run's curves; what other verbs read goes into a folder of that name within the run.

    Returns:
        The run's folder if it has no logger, else None.
    """
    run = checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else None
    loggers = spell_out_loggers(trainer)
    if not loggers:
        root = roots(trainer)[0]
        inside = run is not None and run.parent.resolve() == root.resolve()
        return run if inside else start(trainer)
    kept: list[dict[str, str]] = [*runs.run_state(read_checkpoint(checkpoint)).get("loggers", ())]
    for logger in loggers:
        name = logger.class_path.rpartition(".")[2]
        own = next((k for k in kept if k["class"] == name), None)
        if own is not None:
            kept.remove(own)
        if (
            logger.class_path not in (*VERSIONED, WANDB)
            or logger.init_args.version is not None
            or logger.init_args.get("id")
        ):
            continue
        if verb != "fit" and logger.class_path != TENSORBOARD:
            continue
        folder = _own_folder(trainer, logger, own, run)
        if folder is not None:
            logger.init_args.version = folder.name if verb == "fit" else f"{folder.name}/{verb}"
            rank_zero_only(runs.keep_metrics)(folder)
    return None


def _own_folder(trainer: Namespace, logger: Namespace, kept: dict[str, str] | None, run: Path | None) -> Path | None:
    """Return the folder of a run in the root of one of its loggers, if it has one there.

    Args:
        trainer: the configuration.
        logger: one of its loggers.
        kept: what the checkpoint says of that logger.
        run: the run's own folder.
    """
    root = _root(trainer, logger)
    if run is not None and run.parent.resolve() == root.resolve():
        return root / run.name
    if run is None or kept is None:
        return None
    version = kept["version"]
    folder = root / (f"version_{version}" if version.isdecimal() else version)
    return folder if folder.exists() else None


def _root(trainer: Namespace, logger: Namespace) -> Path:
    """Return the folder in which a logger makes one for each run."""
    arguments: dict[str, Any] = vars(logger.init_args) if "init_args" in logger else {}
    place = Path(arguments.get("save_dir") or arguments.get("dir") or trainer.default_root_dir or ".")
    name = arguments.get("name") if logger.class_path in VERSIONED else arguments.get("project")
    return place / (name or (runs.LOGS if logger.class_path == WANDB else ""))


def tell_other_settings(which: str, found: Path, config: Namespace) -> None:
    """Say where the newest run, which ``last`` or ``best`` means, was made by other settings than those that are given.

    Args:
        which: as it was typed.
        found: the checkpoint that it means.
        config: of the verb, parsed and not instantiated.
    """
    run = run_of(found) if which in CHECKPOINT_WORDS else None
    differ = [] if run is None else other_settings(run, config)
    if run is not None and differ:
        more = f"; and {len(differ) - MOST_TOLD} more" if len(differ) > MOST_TOLD else ""
        note(
            f"note: --ckpt_path {which} is of the newest run, {near(run)}, which was made by other settings: "
            f"{'; '.join(differ[:MOST_TOLD])}{more}. Another run is read by its folder in place of the file."
        )


def other_settings(run: Path, config: Namespace) -> list[str]:
    """Return in which settings of the model and its training rows a run and a configuration differ, with both values.

    Args:
        run: folder of the run, with its config.yaml.
        config: of a verb, parsed and not instantiated.
    """
    if not (run / RUN_SETTINGS).is_file():
        return []
    theirs: Any = yaml.safe_load(newest_settings(run).read_text(encoding="utf-8")) or {}
    ours: Any = config.clone().as_dict()
    made = ({"model": of.get("model"), "data.train": (of.get("data") or {}).get("train")} for of in (theirs, ours))
    there, here = (dict(_leaves(of)) for of in made)
    both = [key for key in there if key in here and str(there[key]) != str(here[key])]
    return [f"{key.replace('.init_args', '')} is {there[key]} there and {here[key]} here" for key in both]


def _leaves(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what stands in nested mappings, by its key with dots."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{above}.{name}" if above else str(name))
    else:
        yield above, list(value) if isinstance(value, tuple) else value
