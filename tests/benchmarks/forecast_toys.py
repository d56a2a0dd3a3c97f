"""Forecasts beside what the runs then did, on three toys: `python -m tests.benchmarks.forecast_toys`.

Each toy learns to prefer one of two letters in each of twelve contexts, and is then trained on rows in which the other
letter is right: 40% of the rows hold one of the contexts, a step has 2 x 4 rows, with dropout, clipping, warm-up and
linear decay. The probes have a word in front of the context that no training row has there, and are read after every
step. The forecast is that of `ExposureForecast` with the defaults, but for `every`.
"""

import math
import random
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import LightningModule
from torch import optim
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lightning_sft.callbacks import ExposureForecast
from lightning_sft.probes import Probe
from tests import toys
from tests.benchmarks.predict_cells import SIZES
from tests.callbacks.stranger import fit

#: architecture, optimizer, its class and settings, steps of the run
RUNS = {
    "granite, AdamW": ("granite", lambda p: optim.AdamW(p, lr=4e-4), 120),
    "stablelm, momentum": ("stablelm", lambda p: optim.SGD(p, lr=4e-3, momentum=0.9), 120),
    "phi, AdamW": ("phi", lambda p: optim.AdamW(p, lr=2.5e-4), 240),
}
CONTEXTS = [
    "the old farm ", "her first song ", "a broken clock ", "in the garden ", "we never found ", "under the bridge ",
    "his last letter ", "on the table ", "before the storm ", "they all know ", "an empty room ", "at the market ",
]  # fmt: skip
FILLERS = [f"{a} {b} {c}." for a in ("one", "two", "six") for b in ("red", "dim", "odd") for c in ("cup", "hat", "fig")]
LENGTH = 24


class Toy(LightningModule):
    """Plain language modelling on rows that are drawn once, under warm-up and linear decay."""

    def __init__(self, net, rows, make, steps):
        super().__init__()
        self.net, self.rows, self.make, self.steps = net, rows, make, steps
        self.tokenizer = toys.toy_tokenizer()

    def training_step(self, batch, batch_idx):
        return loss_of(self.net, batch)

    def configure_optimizers(self):
        optimizer, warm = self.make(self.parameters()), self.steps // 10

        def share(step):
            return min((step + 1) / warm, 1.0) * (1 - step / self.steps)

        schedule = optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=4)


def loss_of(net, batch):
    """Return the mean loss of rows that are padded with zeros."""
    logits = net(batch, use_cache=False).logits[:, :-1]
    labels = batch[:, 1:].masked_fill(batch[:, 1:] == 0, -100)
    return cross_entropy(logits.flatten(0, 1), labels.flatten())


def encoded(texts):
    """Return rows of ids, padded with zeros, (rows, LENGTH)."""
    tokenizer, ids = toys.toy_tokenizer(), torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        own = tokenizer(text).input_ids[:LENGTH]
        row[: len(own)] = torch.tensor(own)
    return ids


def prepared(kind, letters):
    """Return a toy that prefers the second letter of each context."""
    net = toys.toy_model(kind, 3, **SIZES[kind], attention_dropout=0.1).train()
    rows = encoded([context + wrong for context, (_, wrong) in zip(CONTEXTS, letters, strict=True)] + FILLERS)
    optimizer = optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss_of(net, rows).backward()
        optimizer.step()
    return net


def run(name, seed):
    """Make a run with its forecast, and return the graded result."""
    kind, make, steps = RUNS[name]
    toys.KINDS.setdefault(kind, {})
    draw = random.Random(seed)
    torch.manual_seed(seed)
    letters = [draw.sample("abcdefghijkl", 2) for _ in CONTEXTS]
    net = prepared(kind, letters)
    right = [context + letter for context, (letter, _) in zip(CONTEXTS, letters, strict=True)]
    rows = encoded([draw.choice(right if draw.random() < 0.4 else FILLERS) for _ in range(8 * steps)])
    probes = [
        Probe(f"so {context}", *pair, name=f"p{i}", leading_space=False)
        for i, (context, pair) in enumerate(zip(CONTEXTS, letters, strict=True))
    ]
    told = ExposureForecast(probes, every=1)
    with tempfile.TemporaryDirectory() as folder:
        options = {"max_steps": steps, "max_epochs": -1, "gradient_clip_val": 1.0, "accumulate_grad_batches": 2}
        fit(Toy(net, rows, make, steps), [told], Path(folder), **options)
    return told.result


def main(seed=22):
    """Run all, and print the tables."""
    torch.set_num_threads(1)
    rows = [
        "| toy | behind | steps named | median error | upper bounds | that were | no forecast | intervals that held |"
    ]
    rows.append("|---" * 8 + "|")
    for name in RUNS:
        made = run(name, seed)
        print(f"{name}\n{made.text()}\n")
        pairs = list(zip(made.probes, made.seen, strict=True))
        bounds = [(p, s) for p, s in pairs if p.outcome == "flips by"]
        held, judged = made.coverage()
        error, kinds = made.median_error(), [p.outcome for p in made.probes]
        cells = [name, len(kinds) - kinds.count("already ahead"), kinds.count("flips"),
                 "-" if error is None else f"{math.expm1(error):.0%}", len(bounds),
                 sum(s is not None and s <= math.ceil(p.step) for p, s in bounds),
                 kinds.count("cannot predict this"), f"{held} of {judged}"]  # fmt: skip
        rows.append(f"| {' | '.join(map(str, cells))} |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
