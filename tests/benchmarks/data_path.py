"""What padding costs, and what grouping and packing save: ``python -m tests.benchmarks.data_path``.

SmolLM2-135M on GSM8K, full fine-tuning on the completions. Each contender trains on the batches that its own data path
makes of the set, about 2000 positions each, and contenders take turns step by step. Tokens/s counts real tokens only.
Few processes fit into memory at once: contenders run in heats, each beside the first one, and ratios are to the first
one of the same heat. The padding of a whole epoch is counted where our data module makes the batches; for the other
trainers it is that of the measured steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning_sft import SFTDataModule
from lightning_sft.models.loading import load_tokenizer
from tests.benchmarks import corpus
from tests.benchmarks.step import MODEL, save_model
from tests.benchmarks.turns import Contender, count, python, take_turns

ROWS, LENGTH = 8, 512
"""Rows of a padded batch, and the longest row; packed batches hold as many positions as 4 of the longest."""
FASTEST = {"gradient_checkpointing": False}  # TRL's own default recomputes activations


def padded(head: str = "auto", attention: str | None = None, **data: Any) -> dict[str, Any]:
    """Our trainer on one row a sequence."""
    module = {"head": head, "attn_implementation": attention}
    return {"kind": "ours", "module": module, "data": {"batching": "padded", **data}}


def packed(rows: int, length: int, attention: str | None = None) -> dict[str, Any]:
    """Our trainer on packed rows."""
    module = {"attn_implementation": attention}
    return {
        "kind": "ours",
        "module": module,
        "data": {"batching": "packed"},
        "batch_size": rows,
        "max_length": length,
    }


def trl(order: str = "random", attention: str | None = None, **options: Any) -> dict[str, Any]:
    """TRL's trainer."""
    return {"kind": "trl", "order": order, "attention": attention, "options": {**FASTEST, **options}}


CONTENDERS: dict[str, dict[str, Any]] = {
    "padded to the longest": padded(),
    "padded to max_length, plain head": padded("reference", pad_to_multiple_of=LENGTH),
    "grouped by length": padded(batching="grouped"),
    "packed 4 x 512, attention per document": packed(4, LENGTH, "per_document"),
    "grouped by length, eager attention": padded(batching="grouped", attention="eager"),
    "TRL, grouped by length": trl("group_by_length"),
    "TRL, packing 4 x 512": {**trl(packing=True), "batch_size": 4},
    "packed 4 x 512, sdpa with masks": packed(4, LENGTH, "sdpa"),
    "packed 1 x 2048, attention per document": packed(1, 4 * LENGTH, "per_document"),
    "packed 1 x 2048, sdpa with masks": packed(1, 4 * LENGTH, "sdpa"),
    "TRL, grouped by length, eager attention": trl("group_by_length", "eager"),
    "TRL, packing 1 x 2048": {**trl(packing=True), "batch_size": 1, "max_length": 4 * LENGTH},
    "TRL, padded to the longest": trl(),
    "padded to the longest, plain head": padded("reference"),
    "padded to max_length": padded(pad_to_multiple_of=LENGTH),
    "Hugging Face Trainer, padded to max_length": {"kind": "hf", "options": {}, "padding": "max_length"},
}


def heats(names: list[str], together: int) -> list[list[str]]:
    """Split contenders into heats of at most ``together``, the first one in each."""
    first, others = names[0], names[1:]
    step = max(together - 1, 1)
    return [[first, *others[i : i + step]] for i in range(0, len(others), step)] or [[first]]


def epoch_padding(settings: dict[str, Any], tokenizer: Any) -> float:
    """Return the share of padding in a whole epoch of our data module."""
    options = {"batch_size": settings["batch_size"], "max_length": settings["max_length"], "truncation": "drop"}
    data = SFTDataModule(settings["rows"], tokenizer=tokenizer, **{**options, **settings["data"]})
    data.setup("fit")
    totals = [count(batch)[:2] for batch in data.train_dataloader()]
    return 1 - sum(tokens for tokens, _ in totals) / sum(positions for _, positions in totals)


def line(contender: Contender, first: Contender, padding: float) -> str:
    """Return one row of the table."""
    tokens, positions, wall, cpu = (
        sum(getattr(step, key) for step in contender.steps) for key in ("tokens", "positions", "wall", "cpu")
    )
    base = sum(step.tokens for step in first.steps)
    ratios = [
        tokens / seconds / (base / sum(getattr(step, key) for step in first.steps))
        for key, seconds in (("wall", wall), ("cpu", cpu))
    ]
    peak = max(step.peak for step in contender.steps)
    return (
        f"| {contender.name} | {tokens / cpu:.0f} | {tokens / wall:.0f} | {ratios[1]:.2f} | {ratios[0]:.2f} | "
        f"{padding:.1%} | {1 - tokens / positions:.1%} | {peak:.0f} |"
    )


def run(arguments: argparse.Namespace, folder: Path) -> None:
    """Run all heats and print the table."""
    model = save_model(arguments.model, folder)
    tokenizer = load_tokenizer(str(model))
    rows = corpus.write(folder, arguments.data, arguments.rows)
    encoded = corpus.encode(rows, tokenizer, LENGTH)
    (folder / "encoded.json").write_text(json.dumps(encoded))
    common = {
        "model": str(model),
        "rows": str(rows),
        "encoded": str(folder / "encoded.json"),
        "folder": str(folder),
        "precision": arguments.precision,
        "threads": arguments.threads,
        "batch_size": ROWS,
        "max_length": LENGTH,
        "order": "random",
        "fused_adamw": True,
    }
    print(f"\n### {arguments.precision}, {arguments.threads} threads: {corpus.facts(encoded)}\n")
    print(
        "| data path | tokens/CPU s | tokens/wall s | ratio to the first: CPU | wall | padding of an epoch | "
        "of these steps | peak MiB |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for heat in heats(arguments.contenders, arguments.together):
        contenders = []
        for name in heat:
            settings = {**common, **CONTENDERS[name]}
            interpreter = sys.executable if settings["kind"] == "ours" else arguments.peers
            log = folder / f"{len(list(folder.glob('*.log')))}.log"
            contenders.append(Contender(name, python(interpreter, settings), arguments.threads, log))
        take_turns(contenders, arguments.warm, arguments.rounds)
        for contender in contenders:
            settings = {**common, **CONTENDERS[contender.name]}
            steps = contender.steps
            padding = (
                epoch_padding(settings, tokenizer)
                if settings["kind"] == "ours"
                else 1 - sum(step.tokens for step in steps) / sum(step.positions for step in steps)
            )
            print(line(contender, contenders[0], padding), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSON lines with question and answer (GSM8K); default: made-up text")
    parser.add_argument("--rows", type=int, help="take so many rows only")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--peers", default=sys.executable, help="Python with trl==1.16.0")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--precision", choices=["bf16-mixed", "bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--together", type=int, default=4, help="processes at once")
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, Path(folder))


if __name__ == "__main__":
    main()
