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


#: verb -> a command that it could be called by
EXAMPLES: dict[str, str] = {
    "fit": "lightning fit --model HuggingFaceTB/SmolLM2-135M-Instruct --train train.jsonl --adapter lora",
    "validate": "lightning validate lightning_logs/RUN",
    "test": "lightning test lightning_logs/RUN --data.test test.jsonl",
    "predict": "lightning predict lightning_logs/RUN --data.predict prompts.jsonl",
    "demo": "lightning demo",
    "init": "lightning init --model HuggingFaceTB/SmolLM2-135M-Instruct --train train.jsonl",
    "chat": 'lightning chat lightning_logs/RUN --prompt "What is 12 + 30?"',
    "compare": 'lightning compare sft.yaml --objectives "NLL,PowerFamily(1)" --max_steps 200',
    "sweep": "lightning sweep status --storage journal:/shared/compare.log",
    "configs": "lightning configs copy demo",
    "estimate": "lightning estimate --model Qwen/Qwen3-0.6B --max_length 2048 --adapter lora",
    "export": "lightning export lightning_logs/RUN",
    "mine-probes": "lightning mine-probes --model Qwen/Qwen3-0.6B --data texts.txt --output probes.yaml",
    "advise": "lightning advise sft.yaml",
    "forecast": "lightning forecast sft.yaml",
    "audit": "lightning audit --after my-model --before Qwen/Qwen3-0.6B --data test.jsonl",
    "inspect": "lightning inspect sft.yaml --rows 5",
    "score": "lightning score --model my-model --data.test test.jsonl --output scores.parquet",
    "env": "lightning env",
    "completion": "lightning completion bash",
    "report": "lightning report lightning_logs/RUN",
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
        usage="[FILE.yaml ...] (--objectives NAMES | --arm NAME KEY=VALUE ...) [--KEY VALUE ...]",
    ),
    "sweep": Verb(
        "lightning_sft.cli.compare.sweep",
        "main",
        "workers of a comparison that several machines share, its status, and a search for the critical rate",
    ),
    "configs": Verb("lightning_sft.cli.configs", "main", "list, show and copy the shipped configurations"),
    "estimate": Verb(
        "lightning_sft.cli.estimate",
        "estimate",
        "before anything is loaded: what a run will hold in memory, whether it fits, what to change first",
        settings=True,
    ),
    "export": Verb(
        "lightning_sft.cli.export",
        "main",
        "write a checkpoint as a Hugging Face folder, adapters merged or not",
    ),
    "mine-probes": Verb("lightning_sft.cli.mine_probes", "main", "find near-synonym probes in your own text"),
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
