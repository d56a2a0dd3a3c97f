"""A digest of what the outcome of a trial depends on, so that finished trials are reused only where they are valid."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_sft.checkpoints.state import rng_state
from lightning_sft.files import file_digest
from lightning_sft.sweep.batches import TrialBatches
from lightning_sft.sweep.code import PACKAGE, code_of, is_library, modules_of
from lightning_sft.sweep.fingerprint import Fingerprint

_LIBRARIES = ("lightning", "torch", "transformers", "peft", "tokenizers", "bitsandbytes")
#: Attributes of an optimizer that are read apart, or are hooks.
_OPTIMIZER_TABLES = frozenset(vars(torch.optim.SGD([torch.zeros(1)], lr=1.0))) - {"defaults"}


def digest(
    trainer: Trainer,
    module: LightningModule,
    trial_batches: TrialBatches,
    settings: dict[str, Any],
    objects: Iterable[object] = (),
    steps: int = 32,
) -> str:
    """Return a hexadecimal digest, the same on every rank; arguments as of `digests`."""
    parts = digests(trainer, module, trial_batches, settings, objects, steps)
    return over_ranks(trainer, parts, module.device)


def digests(
    trainer: Trainer,
    module: LightningModule,
    trial_batches: TrialBatches,
    settings: dict[str, Any],
    objects: Iterable[object] = (),
    steps: int = 32,
) -> dict[str, str]:
    """Return what trials depend on on this rank: a hexadecimal digest of each part, by name.

    It covers the module with everything that hangs on it (weights, buffers, modes, configurations, attributes, code),
    optimizers, schedulers and loss scaler, the batches by content, the random streams, the trainer's settings, device,
    numerical switches, versions, and the given settings and objects. Two runs that differ in one of them have another
    digest there.

    Args:
        trainer: in a fit.
        module: its module.
        trial_batches: the trials' data.
        settings: plain data: of the search, and so on.
        objects: what else takes part in trials: observers, callbacks.
        steps: for how many steps a schedule that is a function is evaluated: at least those of a trial.
    """
    reader = Fingerprint()
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    batches = trial_batches.batches
    parts: dict[str, object] = {
        "model": module,
        "rows": [[batch.batch for batch in batches], [batch.is_last for batch in batches]],
        "optimizer": [_optimizer(o, module) for o in trainer.optimizers],
        "schedule": [_scheduler_config(c, steps) for c in trainer.lr_scheduler_configs],
        "loss scaler": None if scaler is None else scaler.state_dict(),
        "random streams": rng_state(),
        "trainer's settings": _trainer_facts(trainer),
        **_machine_facts(module),
        "settings of the search": settings,
        "observers": list(objects),
    }
    return {name: hashlib.sha256(reader.of(part)).hexdigest()[:16] for name, part in parts.items()}


def _optimizer(optimizer: Any, module: nn.Module) -> list[object]:
    """Return what an optimizer is, with the names of its parameters for the parameters."""
    names = {id(p): name for name, p in module.named_parameters()}
    groups = [{**group, "params": [names.get(id(p), "") for p in group["params"]]} for group in optimizer.param_groups]
    state = [(names.get(id(p), ""), dict(values)) for p, values in getattr(optimizer, "state", {}).items()]
    rest = {k: v for k, v in sorted(vars(optimizer).items()) if k not in _OPTIMIZER_TABLES}
    return [type(optimizer), groups, state, rest]


def _scheduler_config(config: Any, steps: int) -> list[object]:
    how = [config.interval, config.frequency, config.monitor, config.reduce_on_plateau]
    return [*how, _schedule(config.scheduler, steps)]


def _schedule(scheduler: Any, steps: int) -> dict[str, Any]:
    """Return a scheduler's settings; functions are told by their next values."""
    kinds = (bool, int, float, str, type(None), list, tuple, dict)
    plain: dict[str, Any] = {k: v for k, v in vars(scheduler).items() if isinstance(v, kinds)}
    lambdas = plain.pop("lr_lambdas", [])
    plain["lambdas"] = [[float(f(scheduler.last_epoch + i)) for i in range(steps + 1)] for f in lambdas]
    plain["_schedulers"] = [_schedule(s, steps) for s in plain.pop("_schedulers", [])]
    return {"class": type(scheduler), **dict(sorted(plain.items()))}


def _trainer_facts(trainer: Trainer) -> dict[str, Any]:
    return {
        "position": [trainer.global_step, trainer.max_steps, trainer.max_epochs, trainer.num_training_batches],
        "epoch": trainer.current_epoch,
        "accumulate": trainer.accumulate_grad_batches,
        "clipping": [trainer.gradient_clip_val, str(trainer.gradient_clip_algorithm)],
        "precision": [trainer.precision, type(trainer.precision_plugin)],
        "ranks": [trainer.world_size, trainer.global_rank],
        "strategy": type(trainer.strategy),
    }


def _machine_facts(module: LightningModule) -> dict[str, Any]:
    """Return what numbers depend on beside the run: device, numerical switches, versions, the user's own code."""
    cuda = module.device.type == "cuda"
    return {
        "device": [module.device.type, torch.cuda.get_device_name(module.device) if cuda else platform.machine()],
        "numerical switches": [
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        ],
        "versions": [platform.python_version(), np.__version__, *map(_version, _LIBRARIES)],
        "package code": _package_digest(),
        "own code": _own_code(),
    }


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


@cache
def _package_digest() -> dict[str, str]:
    """Return the digests of what trains and reads; other rooms of this package decide no outcome."""
    rooms = ("callbacks", "data", "module", "objectives", "sweep.critical")
    return code_of(modules_of(f"{PACKAGE}.{room}" for room in rooms))


def _own_code() -> dict[str, str]:
    """Return the digests of all loaded Python files that are no part of an installed library: the user's project."""
    found = {}
    for name, loaded in sorted(sys.modules.items()):
        file = getattr(loaded, "__file__", None)
        if not isinstance(file, str) or not file.endswith(".py") or name.partition(".")[0] == "lightning_sft":
            continue
        path = Path(file).resolve()
        if path.is_file() and not is_library(path, name):
            found[name] = file_digest(path)
    return found


def over_ranks(trainer: Trainer, parts: dict[str, str], device: torch.device) -> str:
    """Return one digest of the parts of all ranks, the same on every rank."""
    own = hashlib.sha256("\n".join(parts.values()).encode())
    words = torch.tensor(list(own.digest()), dtype=torch.int64, device=device) * (trainer.global_rank + 1)
    total = trainer.strategy.reduce(words, reduce_op="sum")
    assert isinstance(total, Tensor)
    return hashlib.sha256(repr(total.tolist()).encode()).hexdigest()
