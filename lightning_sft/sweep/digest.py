"""A digest of what the outcome of a trial depends on, so that finished trials are reused only where they are valid."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from lightning_sft.checkpoints.state import rng_state
from lightning_sft.files import tensor_bytes
from lightning_sft.sweep.batches import TrialBatches

AHEAD = 32  # steps that a schedule given as a function is evaluated for
SAMPLE = 4096  # elements of a frozen tensor that are looked at: enough to tell models apart


def digest(trainer: Trainer, module: LightningModule, trial_batches: TrialBatches, settings: dict[str, Any]) -> str:
    """Return a hexadecimal digest, the same on every rank.

    It covers trainable parameters, buffers, optimizer and scheduler states and the data in full, frozen parameters by
    a sample, the random streams, and the settings.

    Args:
        trainer: in a fit.
        module: its module.
        trial_batches: the trials' data.
        settings: plain data: of the search, its observers, and so on.
    """
    own = hashlib.sha256()
    for name, parameter in module.named_parameters():
        own.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}{parameter.requires_grad}".encode())
        _feed(own, parameter, whole=parameter.requires_grad)
    for _, buffer in module.named_buffers():
        _feed(own, buffer, whole=buffer.numel() <= 1 << 20)
    for value in tree_leaves([batch.batch for batch in trial_batches.batches]) + tree_leaves(rng_state()):
        _feed(own, value, whole=True)
    for optimizer in trainer.optimizers:
        own.update(type(optimizer).__name__.encode())
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        for value in (*tree_leaves(groups), *(v for s in optimizer.state.values() for v in tree_leaves(dict(s)))):
            _feed(own, value, whole=True)
    facts = {
        "schedulers": [_schedule(c.scheduler) for c in trainer.lr_scheduler_configs],
        "position": [trainer.global_step, trainer.max_steps, trainer.max_epochs, trainer.num_training_batches],
        "accumulate": trainer.accumulate_grad_batches,
        "clipping": [trainer.gradient_clip_val, str(trainer.gradient_clip_algorithm)],
        "precision": str(trainer.precision),
        "ranks": trainer.world_size,
        "strategy": type(trainer.strategy).__name__,
        "module": type(module).__qualname__,
        "objective": repr(getattr(module, "objective", None)),
        "denominator": str(getattr(module, "denominator", None)),
        "torch": torch.__version__,
        **settings,
    }
    own.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return _over_ranks(trainer, own.digest(), module.device)


def _feed(own: Any, value: object, *, whole: bool) -> None:
    if not isinstance(value, Tensor):
        own.update(repr(value).encode())
        return
    flat = (value.to_local() if isinstance(value, DTensor) else value).detach().reshape(-1)
    if not whole and flat.numel() > SAMPLE:
        flat = flat[:: flat.numel() // SAMPLE]
    own.update(tensor_bytes(flat))


def _schedule(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's settings; functions are told by their next values."""
    kinds = (bool, int, float, str, type(None), list, tuple)
    plain: dict[str, Any] = {k: v for k, v in vars(scheduler).items() if isinstance(v, kinds)}
    lambdas = plain.pop("lr_lambdas", [])
    plain["lambdas"] = [[f(scheduler.last_epoch + i) for i in range(AHEAD)] for f in lambdas]
    plain["_schedulers"] = [_schedule(s) for s in plain.pop("_schedulers", [])]
    return {"class": type(scheduler).__name__, **plain}


def _over_ranks(trainer: Trainer, own: bytes, device: torch.device) -> str:
    # sums of bytes, weighed by rank, are exact in float64
    words = torch.tensor(list(own), dtype=torch.float64, device=device) * (trainer.global_rank + 1)
    total = trainer.strategy.reduce(words, reduce_op="sum")
    assert isinstance(total, Tensor)
    return hashlib.sha256(repr(total.tolist()).encode()).hexdigest()
