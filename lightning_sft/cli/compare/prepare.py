"""A comparison as it is asked for becomes a design: every arm's configuration is parsed and checked before any run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from lightning_sft.cli.classes import choose_classes, with_classes
from lightning_sft.cli.compare.arms import ArmSettings, objective_arms, setting_arm
from lightning_sft.cli.compare.identity import arm_facts, common_facts, device_of
from lightning_sft.cli.settings import SettingsCLI
from lightning_sft.compare.design import Arm, Design
from lightning_sft.compare.rates import RateSearch
from lightning_sft.data.draws import needs_parts
from lightning_sft.errors import UserError


def make_design(asked: argparse.Namespace, arguments: Sequence[str]) -> Design:
    """Return the design of what was asked for.

    Args:
        asked: our own options.
        arguments: settings of ``fit`` that all arms share.

    Raises:
        UserError: settings that cannot work, of any arm.
    """
    chosen: list[ArmSettings] = objective_arms(asked.objectives) if asked.objectives else []
    chosen += [setting_arm(words) for words in asked.arm or []]
    if len(chosen) < 2:
        raise UserError(
            f"There {'is one arm' if chosen else 'are no arms'} to compare. Give two or more, by --objectives "
            "NLL,PowerFamily(1) or --arm NAME KEY=VALUE ...; the first is what the others are compared with."
        )
    search = RateSearch(asked.low, asked.high, asked.points, asked.refine, asked.grow)
    arms, parts = [], False
    for one in chosen:
        arm, dealt = _arm(one, [*arguments, *one.arguments])
        arms.append(arm)
        parts |= dealt
    return Design(
        asked.name, tuple(arms), asked.replicates, asked.seed, search, asked.search_replicates, asked.select, parts
    )


def facts_here(arm: Arm, file: Path) -> dict[str, str]:
    """Return what runs of an arm would depend on in this process.

    Args:
        arm: of a comparison.
        file: that holds its configuration.

    Raises:
        UserError: its configuration cannot be used here, as where a file is missing.
    """
    return dict(_read(arm.name, [f"--config={file}"])[0].facts)


def _arm(asked: ArmSettings, arguments: list[str]) -> tuple[Arm, bool]:
    """Return an arm, and whether its judged rows must be dealt out."""
    try:
        return _read(asked.name, arguments)
    except UserError as error:
        raise UserError(f"arm {asked.name}: {error}") from error


def _read(name: str, arguments: list[str]) -> tuple[Arm, bool]:
    cli = SettingsCLI(args=arguments, run=False)
    config = cli.config.clone()
    trainer = config.trainer
    if trainer.fast_dev_run or trainer.barebones:
        raise UserError("trainer.fast_dev_run and trainer.barebones leave no readings to compare. Leave them out.")
    if not cli.datamodule.sets.has("train") or not cli.datamodule.sets.has("val"):
        raise UserError(
            "A comparison trains and judges: set data.train, and data.val or data.val_split (a number of rows)."
        )
    if config.ckpt_path:
        raise UserError(
            f"--ckpt_path is {config.ckpt_path!r}. Runs of a comparison start from the model; `lightning export` makes "
            "one of a checkpoint."
        )
    device = device_of(str(trainer.accelerator))
    trainer.logger = False  # its readings are kept by the comparison; output.py takes back what is set here
    trainer.enable_model_summary = False
    trainer.enable_progress_bar = bool(trainer.enable_progress_bar)
    own_facts = arm_facts(cli.model.settings, cli.datamodule.sets.sources_of, device)
    if "dtype" in config.model:  # what is fastest here may not be elsewhere
        config.model.dtype = own_facts["dtype"]
    classes, _ = choose_classes(["fit", *arguments])
    content = yaml.safe_load(with_classes(cli.parser.dump(config, skip_none=False), classes))
    for key in ("seed_everything", "ckpt_path", "weights_only"):
        content.pop(key, None)
    content["trainer"].pop("default_root_dir", None)
    text = str(yaml.safe_dump(content, sort_keys=False))
    return Arm(name, text, {**common_facts(device, text), **own_facts}), needs_parts(cli.datamodule.sets)


def starts_ranks(design: Design) -> bool:
    """Return whether a run of any arm may start several ranks, which needs a process of its own."""

    def several(arm: Arm) -> bool:
        import torch

        trainer = yaml.safe_load(arm.config)["trainer"]
        devices, nodes = trainer.get("devices", "auto"), trainer.get("num_nodes", 1)
        if devices in ("auto", -1, "-1"):
            one = trainer.get("accelerator") == "cpu" or torch.cuda.device_count() < 2
        else:
            one = str(devices) == "1" or (isinstance(devices, list) and len(devices) == 1)
        return not one or int(nodes) > 1

    return any(several(arm) for arm in design.arms)
