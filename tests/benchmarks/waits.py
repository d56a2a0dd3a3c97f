"""How often a step of our trainer waits for a GPU: ``python -m tests.benchmarks.waits --accelerator cuda``.

Counted by torch's profiler over whole steps: calls of CUDA that return when the device has caught up. Without a GPU
there are none, and the table says so.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from lightning_sft.models.capability import capability
from tests.benchmarks import corpus
from tests.benchmarks.step import LORA, MODEL, save_model
from tests.benchmarks.trainers import Settings, module_and_data

#: calls that wait; `aten::item` and copies to the CPU end in one of them
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def count(names: Iterable[str]) -> Counter[str]:
    """Return how often each waiting call stands among the names of events."""
    return Counter(name for name in names if name in WAITS)


def measure(settings: Settings, warm: int, steps: int) -> Counter[str]:
    """Return the waiting calls of ``steps`` optimizer steps after ``warm`` others."""
    from lightning.pytorch import Callback, Trainer

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (settings["accelerator"] == "cuda")
    profiler = profile(activities=activities)

    class Watched(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
            if index == warm:
                profiler.start()

    module, data = module_and_data(settings)
    trainer = Trainer(
        accelerator=settings["accelerator"],
        devices=1,
        max_steps=warm + steps,
        gradient_clip_val=1.0,
        callbacks=[Watched()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=10**6,  # the logger's own reads are apart
        default_root_dir=settings["folder"],
    )
    trainer.fit(module, data)
    profiler.stop()
    return count(event.name for event in profiler.events())


def main(argv: list[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSON lines with question and answer (GSM8K); default: made-up text")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--accelerator", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_model(arguments.model, folder)
        rows = corpus.write(folder, arguments.data, arguments.batch_size * (arguments.warm + arguments.steps + 1))
        settings: Settings = {
            "model": str(model),
            "rows": str(rows),
            "folder": name,
            "precision": "bf16",
            "batch_size": arguments.batch_size,
            "max_length": 512,
            "accelerator": arguments.accelerator,
            "lora": LORA if arguments.lora else None,
            "module": {},
            "data": {"order": "sequential"},
        }
        found = measure(settings, arguments.warm, arguments.steps)
    print(f"\n### Waits for the device in a step; {capability(arguments.accelerator)}\n")
    print("| call | times a step |\n|---|---|")
    for name in WAITS:
        print(f"| {name} | {found[name] / arguments.steps:.1f} |")


if __name__ == "__main__":
    main()
