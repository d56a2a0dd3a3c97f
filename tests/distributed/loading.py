"""A model loaded whole by each rank, and shard by shard, on the same rows."""

import os
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from peft import LoraConfig

from lightning_sft import objectives
from lightning_sft.models.shard_loading import ShardLoading
from lightning_sft.training.strategies import FullyShard
from tests.distributed.work import fsdp2, sgd_module
from tests.fitting import batches, loader, trainer
from tests.invariants.kept import whole


class _Seen(Callback):
    """Log-probabilities, gradients and the place of the weights before the first step."""

    def __init__(self) -> None:
        self.logp: list[torch.Tensor] = []
        self.gradients: dict[str, torch.Tensor] = {}
        self.before: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        named = [*pl_module.scorer.named_parameters(remove_duplicate=False), *pl_module.scorer.named_buffers()]
        self.before = {name: whole(value) for name, value in named}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.logp.append(outputs["scores"].logp.detach().clone())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.scorer.named_parameters()
        self.gradients = {name: whole(p.grad) for name, p in named if p.grad is not None}


def _fit(rank: int, model: str, sizes: dict[str, int], lora: dict[str, Any] | None, **settings: Any) -> dict[str, Any]:
    adapter = {} if lora is None else {"adapter": LoraConfig(**{"r": 4, "target_modules": "all-linear", **lora})}
    seen, ranks, sharing = _Seen(), int(os.environ["WORLD_SIZE"]), sizes.get("tensor_parallel_size", 1)
    torch.manual_seed(0)
    if "objective" in settings:
        settings["objective"] = getattr(objectives, settings["objective"])()
    module = sgd_module(model, **adapter, **settings)
    rows = batches(4, 2)[rank // sharing :: ranks // sharing]  # ranks that split layers see the same rows
    fit = trainer(strategy=fsdp2(**sizes), devices=ranks, callbacks=[seen], use_distributed_sampler=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        fit.fit(module, loader(rows))
    scorer = module.scorer
    inputs, outputs = (
        layer.weight for layer in (scorer.causal_lm.get_input_embeddings(), scorer.causal_lm.get_output_embeddings())
    )
    return {
        "before": seen.before,
        "logp": dict(enumerate(seen.logp)),
        "gradients": seen.gradients,
        "after": {name: whole(p) for name, p in scorer.named_parameters()},
        "facts": {
            "head": scorer.head,
            "tied": inputs is outputs,
            "flat": scorer.flat_refusal,
            "dtypes": {name: str(p.dtype) for name, p in scorer.named_parameters()},
            "trained": [name for name, p in scorer.named_parameters() if p.requires_grad],
            "stored": sorted(scorer.state_dict()),
            "ends": scorer.causal_lm.generation_config.eos_token_id,
            "reach": str(scorer.adapter_reach),
        },
    }


def both_ways(
    rank: int,
    model: str,
    sizes: dict[str, int] | None = None,
    lora: dict[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Fit with the whole model loaded by each rank, and once more shard by shard.

    Args:
        rank: this rank.
        model: a folder.
        sizes: of the strategy; two ranks that see different rows by default.
        lora: fields of an adapter; None trains everything.
        settings: of the module.

    Returns:
        ``differences``: what is not the same to the last bit, as sentences; ``refusal``: why it was loaded whole all
        the same, or None; ``facts``: of the model.
    """
    refusals: list[str] = []
    filled: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FullyShard, "loads_shards", False)
        expected = _fit(rank, model, sizes or {}, lora, **settings)
        patch.setattr(FullyShard, "loads_shards", True)
        give_up, fill = ShardLoading.give_up, ShardLoading.fill
        patch.setattr(ShardLoading, "give_up", lambda self, why: (refusals.append(why), give_up(self, why)))
        patch.setattr(ShardLoading, "fill", lambda self, *given: (filled.append(1), fill(self, *given)))
        got = _fit(rank, model, sizes or {}, lora, **settings)
    assert len(refusals) + len(filled) == 1
    differences = [f"{k}: {got['facts'][k]}, not {v}" for k, v in expected["facts"].items() if got["facts"][k] != v]
    for kind in ("before", "logp", "gradients", "after"):
        if got[kind].keys() != expected[kind].keys():
            differences.append(f"{kind}: {sorted(got[kind].keys() ^ expected[kind].keys())}")
            continue
        for name, value in expected[kind].items():
            if got[kind][name].dtype != value.dtype or not torch.equal(got[kind][name], value):
                differences.append(f"{kind} {name}: by {(got[kind][name].float() - value.float()).abs().max():.2g}")
    moved = [n for n, v in expected["after"].items() if not torch.equal(v, expected["before"][n])]
    assert moved, "the step must change something"
    return {"differences": differences, "refusal": refusals[0] if refusals else None, "facts": got["facts"]}


def all_both_ways(rank: int, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results of :func:`both_ways` for several settings, by name."""
    found: dict[str, Any] = {}
    for name, case in cases.items():
        try:
            found[name] = both_ways(rank, **case)
        except Exception as error:
            found[name] = {"differences": [f"{type(error).__name__}: {error}"], "refusal": None, "facts": {}}
    return found
