"""What a verb cannot do without, and the answer where it is missing: what the verb does, an example, all options."""

from __future__ import annotations

from collections.abc import Collection

from lightning_sft.cli.verbs import EXAMPLES, LIGHTNING_VERBS, OWN_VERBS
from lightning_sft.errors import UserError

MODEL = "--model NAME (a hub name, a folder, or a GGUF file)"
_RUN = "a run's folder"
_OF_SETTINGS = f"a model: {MODEL}, or a file of settings that names one"
_OF_CHECKPOINTS = f"a trained model: {_RUN}, or --model NAME with --ckpt_path CHECKPOINT"
#: verb -> in words, and the keys of which one must be given
_NEEDED: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    **{
        verb: [(_OF_SETTINGS, ("model.model_name_or_path",))]
        for verb in ("fit", "inspect", "advise", "forecast", "estimate")
    },
    **{
        verb: [(_OF_CHECKPOINTS, ("model.model_name_or_path", "ckpt_path"))] for verb in ("validate", "test", "predict")
    },
    "compare": [
        (_OF_SETTINGS, ("model.model_name_or_path", "arm")),
        (
            'two or more arms: --objectives "NLL,PowerFamily(1)" or --arm NAME KEY=VALUE ... twice; the first is what '
            "the others are compared with",
            ("objectives", "arm"),
        ),
    ],
    "score": [
        (f"a model: {MODEL}, {_RUN}, or a file of settings that names one", ("model.model_name_or_path", "ckpt_path")),
        ("--output FILE, the Parquet file to write", ("output",)),
    ],
    "audit": [("--after MODEL, the model to audit, and --before MODEL for what it began as", ("after",))],
}


def missing(verb: str, what: str) -> str:
    """Return the answer to a command that lacks something.

    Args:
        verb: of the command line.
        what: it needs, in words.
    """
    does = LIGHTNING_VERBS.get(verb) or OWN_VERBS[verb].help
    return (
        f"`lightning {verb}` needs {what}.\n"
        f"  What it does: {does}\n"
        f"  For example:  {EXAMPLES[verb]}\n"
        f"  All options:  lightning {verb} --help"
    )


def require_needed(verb: str, keys: Collection[str]) -> None:
    """Raise if a verb lacks what it cannot do without.

    Args:
        verb: of the command line.
        keys: that are given; without any that stands for an answer, such as ``print_config``.

    Raises:
        UserError: the first thing that is missing.
    """
    for what, either in _NEEDED.get(verb, ()):
        if not any(key in keys for key in either):
            raise UserError(missing(verb, what))
