"""The checkpoint that all runs start from: the model fine-tuned to the sentences as they are."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_sft.compare.result import Point
from lightning_sft.export.folder import write_folder
from lightning_sft.models.access import find_causal_lm, find_tokenizer
from studies.cells import Cell
from studies.checkpoints import fit, level_cell
from studies.cure.design import MARGIN, STUDY, WEIGHT, background, common, quiet_callbacks, sizes_of
from studies.cure.rows import HouseRows
from studies.cure.texts import Context

BLOCK, SEED = "adapted", 1
READ = ("val/nll", "val/mean_p")
#: readings of the checkpoint: weight of the weighted arm, share of design sentences with the right word ahead
MATCHED, AHEAD = "matched weight", "ahead at the start"


class _Way(Callback):
    """Keeps what is read on the way."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        read = {key: float(value) for key, value in trainer.callback_metrics.items() if key in READ}
        self.points.append(Point(trainer.global_step, 0, 0.0, read))


def settings(start: str, small: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the configuration that the checkpoint is made by.

    Args:
        start: the model.
        small: other numbers for a toy.
    """
    sizes = sizes_of(small)
    content = common(start)
    content["seed_everything"] = SEED
    content["data"] |= {
        "batch_size": sizes["rows"],
        "train": background("adapt", sizes["adapt"] * sizes["rows"], whole=True),
        "val": background("judged", sizes["judged"], seed=SEED),
        "seed": SEED,
    }
    content["trainer"] |= {
        "max_steps": sizes["adapt"],
        "val_check_interval": max(1, sizes["adapt"] // 5),
        "callbacks": quiet_callbacks(),
    }
    return content


def make_adapted(start: str, folder: Path, commit: str | None, small: Mapping[str, Any] | None = None) -> Cell:
    """Fine-tune to the sentences, write the checkpoint into ``folder``, and return the cell that tells of it.

    Args:
        start: the model.
        folder: of the checkpoint; it must not exist.
        commit: of this checkout.
        small: see `settings`.
    """
    since, way = time.perf_counter(), _Way()
    content = settings(start, small)
    cli = fit(content, folder.with_name(f"{folder.name} under way"), way)
    sizes = sizes_of(small)
    house = HouseRows(
        "design",
        sizes["pairs"],
        trained_pairs=min(sizes["pairs"], 30),
        contexts=1,
        judged_contexts=1,
        untouched_pairs=0,
        seed=SEED,
    )
    ratio, ahead = matched_weight(cli.model, house.draw().trained)
    write_folder(cli.model, folder)
    last = way.points[-1]
    curve = (*way.points[:-1], replace(last, values={**last.values, MATCHED: ratio, AHEAD: ahead}))
    return level_cell(STUDY, BLOCK, "NLL", content, curve, cli.trainer, folder, start, commit, since)


def matched_weight(module: LightningModule, contexts: Sequence[Context]) -> tuple[float, float]:
    """Return the weight that gives NLL the margin's gradient, and the share of sentences with the right word ahead.

    The weight is the ratio of the norms of two gradients with respect to all weights of the model: of the sum over
    contested tokens of NLL with the margin to the strongest competitor, and of NLL alone.

    Args:
        module: with the model in it.
        contexts: whose words, replaced, are the contested tokens.
    """
    model, tokenizer = find_causal_lm(module), find_tokenizer(module)
    training = model.training
    model.eval()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    sums: dict[str, list[Tensor]] = {}
    ahead = 0
    for context in contexts:
        ids = torch.tensor([tokenizer(context.before).input_ids], device=module.device)
        words = (f" {context.pair.correct}", f" {context.pair.competitor}")
        right, other = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in words)
        logits = model(input_ids=ids).logits[0, -1].float()
        ahead += int(logits[right] > logits[other])
        nll = -logits.log_softmax(0)[right]
        rival = torch.cat([logits[:right], logits[right + 1 :]]).max()
        margin = nll + WEIGHT * (MARGIN - (logits[right] - rival)).clamp(min=0)
        for name, loss in (("nll", nll), ("margin", margin)):
            gradients = torch.autograd.grad(loss, weights, retain_graph=name == "nll", allow_unused=True)
            found = [g if g is not None else torch.zeros_like(w) for g, w in zip(gradients, weights, strict=True)]
            sums[name] = found if name not in sums else [a + b for a, b in zip(sums[name], found, strict=True)]
    model.train(training)
    norms = {name: float(torch.stack([g.double().norm() for g in some]).norm()) for name, some in sums.items()}
    return norms["margin"] / norms["nll"], ahead / len(contexts)
