"""The verbs of the command line: one line each, and nothing is imported before a verb runs."""

from __future__ import annotations

from typing import NamedTuple

#: Lightning's own verbs, run by LightningCLI -> help
LIGHTNING_VERBS = {
    "fit": "fine-tune a model",
    "validate": "read the validation metrics of a checkpoint",
    "test": "read the test metrics of a checkpoint",
    "predict": "answer prompts and write them as JSON lines",
}


class Verb(NamedTuple):
    """A verb of our own.

    Attributes:
        module: where it lives; imported when the verb runs.
        function: takes the arguments after the verb.
        help: what it does, in a line.
        settings: whether it also takes the settings of ``fit``, and so the short words for them.
        usage: how it is called, for its help.
    """

    module: str
    function: str
    help: str
    settings: bool = False
    usage: str = ""


OWN_VERBS: dict[str, Verb] = {
    "demo": Verb(
        "lightning_sft.cli.demo",
        "main",
        "fine-tune a small model on sums, within minutes and without a network: all of this at work",
        settings=True,
        usage="[--KEY VALUE ...]",
    ),
    "init": Verb(
        "lightning_sft.cli.init",
        "main",
        "write a commented file of settings from options",
        settings=True,
        usage="[FILE.yaml ...] [--KEY VALUE ...] [--output sft.yaml]",
    ),
    "chat": Verb("lightning_sft.cli.chat", "main", "talk to a finished model, beside what it began as"),
    "compare": Verb(
        "lightning_sft.cli.compare.verb",
        "main",
        "compare objectives, or arms that differ in any setting, with intervals",
        settings=True,
    ),
    "sweep": Verb(
        "lightning_sft.cli.compare.sweep",
        "main",
        "workers of a comparison that several machines share, and its status",
    ),
    "configs": Verb("lightning_sft.cli.configs", "main", "list, show and copy the shipped configurations"),
    "estimate": Verb(
        "lightning_sft.cli.estimate",
        "estimate",
        "before anything is loaded: what a run will hold in memory, whether it fits, what to change first",
        settings=True,
    ),
    "export": Verb(
        "lightning_sft.export.folder",
        "main",
        "write a checkpoint as a Hugging Face folder, adapters merged or not",
    ),
    "mine-probes": Verb("lightning_sft.probes.mine", "main", "find near-synonym probes in your own text"),
    "advise": Verb(
        "lightning_sft.cli.advise",
        "advise",
        "before any training: the data, where the model stands, which objective, rate and cost",
        settings=True,
    ),
    "forecast": Verb(
        "lightning_sft.cli.forecast",
        "forecast",
        "before any training: at which step the right words overtake, or that they will not by the end",
        settings=True,
    ),
    "audit": Verb(
        "lightning_sft.cli.audit",
        "main",
        "say of any two finished models whether the loss fell while the right words stayed outranked",
        settings=True,
        usage="--after MODEL [--before MODEL] --data FILE [--KEY VALUE ...]",
    ),
    "inspect": Verb(
        "lightning_sft.cli.inspect",
        "inspect",
        "show rows as the model will see them, with the trained tokens marked",
        settings=True,
    ),
    "score": Verb(
        "lightning_sft.cli.score",
        "score",
        "write what a model makes of each row: NLL, exact match and more",
        settings=True,
        usage="[FILE.yaml ...] (--model MODEL | --ckpt_path CHECKPOINT) --output FILE [--KEY VALUE ...]",
    ),
    "env": Verb("lightning_sft.cli.env", "main", "print versions and devices, for bug reports"),
    "completion": Verb("lightning_sft.cli.completion", "main", "print the script that completes options in a shell"),
    "report": Verb("lightning_sft.cli.report", "main", "write one HTML page about runs, from what they logged"),
}
