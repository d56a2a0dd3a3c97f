"""``lightning export``: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from lightning_sft.cli.front.needs import missing
from lightning_sft.cli.next_commands import listed
from lightning_sft.cli.usage import VerbParser
from lightning_sft.errors import UserError
from lightning_sft.places import CHECKPOINTS, MODEL, near
from lightning_sft.progress import SOON, loading, waiting


def parser() -> VerbParser:
    """Return the parser of the verb."""
    made = VerbParser("export", "(RUN | --ckpt_path CHECKPOINT) [--output FOLDER] [--KEY VALUE ...]")
    add = made.add_argument
    add(
        "--ckpt_path",
        help="a checkpoint file, a run's folder, or 'last' or 'best' of the newest run below the current folder; "
        "this or a run's folder by itself must be given",
    )
    add("--output", type=Path, help="folder to write, which must not exist yet. Default: model in the run's folder")
    add(
        "--merge",
        action="store_true",
        help="merge the adapter into its base, which gives a whole model. Without it the adapter alone is written",
    )
    add(
        "--push_to_hub",
        metavar="REPO",
        help="also upload the folder to this repository of the Hugging Face hub. Default: no upload",
    )
    add("--private", action="store_true", help="with --push_to_hub: a new repository is private")
    return made


def main(arguments: Sequence[str]) -> None:
    """Write a checkpoint as a Hugging Face folder: ``lightning export``.

    Args:
        arguments: those after the verb.
    """
    asked = parser().parse_args(list(arguments))
    if asked.ckpt_path is None:
        raise UserError(missing("export", "a trained model: a run's folder, or --ckpt_path CHECKPOINT"))
    repository = asked.push_to_hub
    if asked.private and repository is None:
        raise UserError("--private is given without --push_to_hub: it is about a repository of the hub.")
    with loading():
        from lightning_sft.checkpoints.runs import find_below
        from lightning_sft.export.folder import load_module, refuse_existing, write_folder
        from lightning_sft.export.hub import check_repository, push_to_hub
        from lightning_sft.export.model_card import is_converted
        from lightning_sft.models.loading import resolve

    if asked.output is not None:
        refuse_existing(asked.output)  # before minutes of loading
    if repository is not None:
        check_repository(repository)
    checkpoint = find_below(asked.ckpt_path)
    if asked.output is None:
        asked.output = _beside(checkpoint)
        refuse_existing(asked.output)
    with waiting(f"Loading {near(checkpoint)} ...", after=SOON):
        module = load_module(checkpoint)
        kind = write_folder(module, asked.output, merge=asked.merge, checkpoint=checkpoint, repository=repository)
    print(f"{near(checkpoint)} -> {asked.output} ({'full model' if kind == 'full' else kind})")
    if kind == "adapter" and is_converted(module.settings.name):
        print(
            f"The adapter names {resolve(module.settings.name)!r} as its base, the folder that {module.settings.name} "
            "was converted to, which exists on this machine alone. With --merge the export needs no base."
        )
    if repository is not None:
        print(f"{asked.output} -> {push_to_hub(asked.output, repository, private=asked.private)}")
    print(listed([shlex.join(["lightning", "chat", "--model", str(asked.output)])]))


def _beside(checkpoint: Path) -> Path:
    """Return where a model goes without ``--output``: into the folder of its run.

    Raises:
        UserError: the checkpoint lies in no run.
    """
    if checkpoint.parent.name != CHECKPOINTS:
        raise UserError(f"{str(checkpoint)!r} lies in no run's folder. Say where to write the model: --output FOLDER.")
    return near(checkpoint.parent.parent / MODEL)
