"""``lightning score``: a line a row of what a model makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_sft.checkpoints.runs import find_checkpoint
from lightning_sft.cli import run_folders
from lightning_sft.cli.front.ranges import require_options
from lightning_sft.cli.settings import SettingsCLI, check_place
from lightning_sft.data import SFTDataModule
from lightning_sft.errors import UserError
from lightning_sft.models.capability import capability, fastest
from lightning_sft.models.finished import FinishedModel, load_finished
from lightning_sft.scoring.score import What, describe, score_rows
from lightning_sft.scoring.table import check_output


class _ScoreCLI(SettingsCLI):
    """The settings of ``fit`` and those of the verb; rows are scored on one device."""

    verb = "score"

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--output", type=str, required=True, help="Parquet file to write; it must not exist yet")
        parser.add_argument("--compare", type=str | None, default=None, help="a file that this verb wrote of "
            "another model on the same rows; columns then say what changed. Default: none")  # fmt: skip
        parser.add_argument(
            "--sets",
            type=list[What],
            default=["train", "val", "test"],
            help="which sets to score, of those that the settings have",
        )
        parser.add_argument("--text", type=bool, default=False, help="write the text of each row into the file, too")
        parser.add_argument("--top", type=int, default=10, help="how many of the worst rows to print")
        parser.add_argument("--base", type=str | None, default=None, help="the model under an adapter, if it has "
            "moved. Default: what the adapter names")  # fmt: skip


def score(arguments: list[str]) -> None:
    """Score every row of the configuration's sets, one by one: ``lightning score``."""
    model, arguments = _finished_model(arguments)
    cli = _ScoreCLI(args=arguments, run=False)
    config, data = cli.config, cli.datamodule
    require_options("score", config)
    if model is not None and config.ckpt_path is not None:
        raise UserError(
            f"--model {model} and --ckpt_path {config.ckpt_path} are both given. Score one after the other."
        )
    check_output(Path(config.output))
    check_place(Path(config.output))
    assert isinstance(data, SFTDataModule)
    report = score_rows(
        _load(cli, model),
        data,
        config.output,
        sets=config.sets,
        compare=config.compare,
        text=config.text,
        top=config.top,
    )
    print(describe(report, Path(config.output)))


def _finished_model(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return what ``--model`` names, and the other arguments: settings below ``model`` go on to the configuration."""
    named: str | None = None
    left, rest = list(arguments), []
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if name != "--model":
            rest.append(argument)
            continue
        if not equals and (not left or left[0].startswith("--")):
            raise UserError("--model has no value. Allowed: a model's folder or hub name, an adapter, or a checkpoint.")
        named = value if equals else left.pop(0)
    return named, rest


def _load(cli: SettingsCLI, model: str | None) -> FinishedModel:
    """Return what is scored: ``model``, the checkpoint that ``ckpt_path`` means, or the configuration's own start."""
    config, settings = cli.config, cli.config.model
    device = "cpu" if config.trainer.accelerator == "cpu" else None
    dtype = settings.dtype
    if dtype == "fastest":  # as the fit decides
        place = device or torch.accelerator.current_accelerator() or "cpu"
        dtype, _ = fastest(capability(place), bool(settings.adapter or settings.adapter_path))
    how: dict[str, Any] = {
        "base": config.base,
        "dtype": dtype,
        "chat_template": settings.chat_template,
        "attn_implementation": settings.attn_implementation,
        "trust_remote_code": settings.trust_remote_code,
        "device": device,
    }
    if config.ckpt_path is not None:
        trainer = config.trainer
        roots, folders = run_folders.roots(trainer), run_folders.checkpoint_folders(trainer)
        return load_finished(find_checkpoint(config.ckpt_path, roots, folders), **how)
    if model is not None:
        return load_finished(model, **how)
    if settings.init == "random":
        raise UserError(
            f"model.init is random: {settings.model_name_or_path!r} has no weights before it is trained. Give "
            "--ckpt_path best, or --model."
        )
    how |= {"tokenizer": settings.tokenizer_name_or_path, "revision": settings.revision}
    if settings.adapter_path is not None:
        base = config.base or settings.model_name_or_path
        return load_finished(settings.adapter_path, **{**how, "base": base, "revision": None})
    return load_finished(settings.model_name_or_path, **how)
