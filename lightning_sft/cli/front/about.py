"""What the help of a verb says beyond its options: how it works, in a few sentences, and further commands."""

from __future__ import annotations

from typing import NamedTuple


class About(NamedTuple):
    """What else there is to know of a verb.

    Attributes:
        text: paragraphs, each line as it is printed.
        examples: commands beside the one that every verb has.
        also: options that are other words for settings, which no parser lists, with what they are.
    """

    text: str = ""
    examples: tuple[str, ...] = ()
    also: tuple[tuple[str, str], ...] = ()


COMPARE = """\
Every arm finds its own learning rate by as many trials as every other, on rows that are not judged. All are then
trained on the same replicates: a seed, with training rows and judged rows drawn afresh. All other options are settings
of `lightning fit`, the same for all arms. The same command again goes on where it was interrupted, and does nothing
new when all is done."""

#: of the verbs that take the settings of ``fit``
ABOUT: dict[str, About] = {
    "demo": About(
        "Teaches SmolLM2-135M to add and subtract two numbers: 60 steps, some minutes on two cores. Runs lie in\n"
        "runs/demo. Where a package of the demo is missing, the command to install it is printed.",
        ("lightning demo --objective PowerFamily --objective.alpha 1",),
    ),
    "init": About(
        "Looks at the first training rows and maps their columns; loads no model.",
        ("lightning init --model Qwen/Qwen3-0.6B --train rows.jsonl --adapter lora --lr 2e-4 --output mine.yaml",),
        (("output FILE", "the file to write, which must not exist yet. Default: sft.yaml."),),
    ),
    "inspect": About(
        "Loads the tokenizer and the rows, never the model's weights. Also says how long rows are, and which held-out\n"
        "rows stand among the training rows.",
        ("lightning inspect --model Qwen/Qwen3-0.6B --train rows.jsonl",),
    ),
    "advise": About(
        "Reads the model's predictions of your rows, tries learning rates and times a few steps, and puts everything\n"
        "back.",
        ("lightning advise sft.yaml --skip rate,cost",),
    ),
    "estimate": About(
        "Reads the model's configuration alone, so any model can be estimated on any machine.",
        ("lightning estimate sft.yaml --device_memory 24",),
    ),
    "forecast": About(
        "Makes a few short runs with the settings of the run and puts everything back. A probe is a sentence with its\n"
        "right next word and a near-synonym that the model may prefer, such as shame and guilt; the model must know\n"
        "both words as single tokens.",
        ("lightning forecast sft.yaml --probes lightning_logs/RUN/silent.jsonl",),
    ),
    "compare": About(
        COMPARE,
        (
            "lightning compare sft.yaml --arm full model.adapter=null --arm lora model.adapter=peft.LoraConfig",
            'lightning compare sft.yaml --objectives "NLL,EAFT" --power --wish 0.02',
        ),
    ),
    "audit": About(
        "Both models read the same rows once; nothing is trained. The rows come from --data, or from the settings\n"
        "(such as a run's folder) with --set.",
        (
            "lightning audit --after my-model --data train.jsonl --trained yes",
            "lightning audit lightning_logs/RUN --before Qwen/Qwen3-0.6B --after last --set train",
        ),
        (("data FILE", "the rows to read, as `lightning fit --train` takes them: JSON lines, CSV, a hub name, ..."),),
    ),
    "score": About(
        "One line a row, as a table that pandas reads. Without --model and --ckpt_path the model of the settings is\n"
        "scored, before any training.",
        (
            "lightning score lightning_logs/RUN --output after.parquet",
            "lightning score sft.yaml --ckpt_path best --output after.parquet --compare before.parquet",
        ),
        (
            ("model MODEL", "a finished model: a folder or hub name of a model or an adapter, or a checkpoint"),
            ("ckpt_path CHECKPOINT", "a checkpoint file, or last or best of the newest run"),
        ),
    ),
}
