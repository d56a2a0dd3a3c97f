"""What a checkpoint after every step costs: ``python -m tests.benchmarks.checkpoints`` (some minutes).

The demo's model under its adapter, on made-up sums, twice: waited for, and behind training. Printed are CPU seconds of
the training thread in a step without the checkpoint, and of the checkpoint in that thread, which is what training waits
for on an idle machine; wall seconds count on an idle one only. ``--full`` trains the whole model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from peft import LoraConfig

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import LastCheckpoint
from lightning_sft.models.capability import capability
from tests.benchmarks.step import MODEL
from tests.fitting import trainer


class Timed(LastCheckpoint):
    """Notes what each step, and each checkpoint in it, took of the training thread; and wall seconds."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.steps: list[tuple[float, float, float]] = []
        self._begun = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self._begun = time.thread_time()

    def on_train_batch_end(self, *arguments: Any) -> None:
        trained, wall = time.thread_time(), time.perf_counter()
        super().on_train_batch_end(*arguments)
        self.steps.append((trained - self._begun, time.thread_time() - trained, time.perf_counter() - wall))


def measure(folder: Path, model: str, full: bool, background: bool, steps: int) -> str:
    """Return one row of the table."""
    rows = folder / "rows.jsonl"
    lines = ({"prompt": f"What is {i} + {3 * i}?", "completion": str(4 * i)} for i in range(10, 10 + 8 * steps))
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    adapter = None if full else LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    module = SFTModule(model, adapter=adapter, dtype="float32" if full else "fastest")
    data = SFTDataModule(str(rows), batch_size=8, cache_dir=False)
    keep = Timed(every_n_train_steps=1, dirpath=str(folder / "checkpoints"), background=background)
    run = trainer(max_steps=steps, callbacks=[keep], enable_checkpointing=True, default_root_dir=folder)
    run.fit(module, data)
    taken = keep.steps[2:-1]  # the first ones allocate, and the last checkpoint is waited for
    step, save, wall = (sum(column) / len(taken) for column in zip(*taken, strict=True))
    size = keep.path.stat().st_size / 2**20
    name = "behind training" if background else "waited for"
    return f"| {name} | {size:.0f} | {step:.2f} | {save:.3f} | {save / step:.1%} | {wall:.3f} |"


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args(argv)
    print(f"{capability()}; {'full' if arguments.full else 'LoRA'}, 8 rows a step")
    print("| checkpoint at every step | MiB | step, CPU s | checkpoint, CPU s | share | checkpoint, wall s |")
    print("|---|---|---|---|---|---|", flush=True)
    for background in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            print(measure(Path(folder), arguments.model, arguments.full, background, arguments.steps), flush=True)


if __name__ == "__main__":
    main()
