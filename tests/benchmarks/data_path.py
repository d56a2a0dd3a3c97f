"""What padding costs, and what grouping and packing save: ``python -m tests.benchmarks.data_path``.

SmolLM2-135M on GSM8K, full fine-tuning on the completions. Each contender trains on the batches that its own data path
makes of the set, and contenders take turns step by step. Packed batches hold half as many sequences as padded ones have
rows, of 512 tokens, or one sequence as long as these together. Tokens/s counts real tokens only.

Few processes fit into memory at once: contenders run in heats, each beside the first one, and ratios are to the first
one of the same heat. ``--together 1`` runs them one by one, and only processor seconds mean something then. The padding
of a whole epoch is counted where our data module makes the batches; for the other trainers it is that of the measured
steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning_sft import SFTDataModule
from lightning_sft.models.capability import capability
from lightning_sft.models.loading import load_tokenizer
from tests.benchmarks import corpus
from tests.benchmarks.step import MODEL, save_model
from tests.benchmarks.turns import Contender, count, heats, python, take_turns

LENGTH = 512
"""The longest row; GSM8K has a few longer ones, which are dropped."""
FASTEST = {"gradient_checkpointing": False}  # TRL's own default recomputes activations


def padded(head: str = "auto", attention: str | None = None, **data: Any) -> dict[str, Any]:
    """Our trainer on one row a sequence."""
    module = {"head": head, "attn_implementation": attention}
    return {"kind": "ours", "module": module, "data": {"layout": "padded", **data}}


def packed(attention: str) -> dict[str, Any]:
    """Our trainer on packed rows, flat where attention keeps documents apart without masks."""
    layout = "flat" if attention == "per_document" else "auto"
    data = {"order": "packed", "layout": layout}
    return {"kind": "ours", "module": {"attn_implementation": attention}, "data": data}


def trl(order: str = "random", attention: str | None = None, **options: Any) -> dict[str, Any]:
    """TRL's trainer."""
    return {"kind": "trl", "order": order, "attention": attention, "options": {**FASTEST, **options}}


CONTENDERS: dict[str, dict[str, Any]] = {
    "flat": {"kind": "ours", "module": {}, "data": {"layout": "flat"}},
    "padded to max_length, plain head": padded("reference", pad_to_multiple_of=LENGTH),
    "padded to the longest": padded(),
    "grouped by length": padded(order="grouped"),
    "packed, attention per document": packed("per_document"),
    "TRL, packing": trl(packing=True),
    "Hugging Face Trainer, padded to the longest": {"kind": "hf", "options": {}, "padding": "longest"},
    "TRL, grouped by length": trl("group_by_length"),
    "grouped by length, eager attention": padded(order="grouped", attention="eager"),
    "packed, sdpa with masks": packed("sdpa"),
    "packed in one sequence, attention per document": packed("per_document"),
    "packed in one sequence, sdpa with masks": packed("sdpa"),
    "TRL, packing in one sequence": trl(packing=True),
    "TRL, grouped by length, eager attention": trl("group_by_length", "eager"),
    "TRL, padded to the longest": trl(),
    "padded to the longest, plain head": padded("reference"),
    "padded to max_length": padded(pad_to_multiple_of=LENGTH),
    "Hugging Face Trainer, padded to max_length": {"kind": "hf", "options": {}, "padding": "max_length"},
}


def sizes(name: str, rows: int) -> dict[str, int]:
    """Return batch size and longest sequence of a contender, by its name."""
    if "pack" not in name:
        return {"batch_size": rows, "max_length": LENGTH}
    packs = max(rows // 2, 1)
    return (
        {"batch_size": 1, "max_length": packs * LENGTH}
        if "one sequence" in name
        else {"batch_size": packs, "max_length": LENGTH}
    )


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
        "order": "random",
        "accelerator": "cpu",
    }
    setting = f"{arguments.precision}, {arguments.threads} threads, {arguments.batch_size} rows a batch"
    print(f"\n### {setting}: {corpus.facts(encoded)}; {capability()}\n")
    print(
        "| data path | tokens/CPU s | tokens/wall s | ratio to the first: CPU | wall | padding of an epoch | "
        "of these steps | peak MiB |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    first: Contender | None = None
    for heat in heats(arguments.contenders, arguments.together):
        contenders = []
        for name in heat:
            settings = {**common, **CONTENDERS[name], **sizes(name, arguments.batch_size)}
            interpreter = sys.executable if settings["kind"] == "ours" else arguments.peers
            log = folder / f"{len(list(folder.glob('*.log')))}.log"
            contenders.append(Contender(name, python(interpreter, settings), arguments.threads, log))
        take_turns(contenders, arguments.warm, arguments.rounds)
        first = contenders[0] if first is None or arguments.together > 1 else first
        for contender in contenders:
            settings = {**common, **CONTENDERS[contender.name], **sizes(contender.name, arguments.batch_size)}
            steps = contender.steps
            padding = (
                epoch_padding(settings, tokenizer)
                if settings["kind"] == "ours"
                else 1 - sum(step.tokens for step in steps) / sum(step.positions for step in steps)
            )
            print(line(contender, first, padding), flush=True)


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
    parser.add_argument("--batch-size", type=int, default=8, help="rows of a padded batch")
    parser.add_argument("--together", type=int, default=4, help="processes at once")
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, Path(folder))


if __name__ == "__main__":
    main()
