"""Facts of a run for people, from the trainer, the module and its data; what a module does not have is left out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_sft._lightning import data_parallel_size_and_rank
from lightning_sft.checkpoints.runs import run_folder
from lightning_sft.data.batches.loaders import is_flat
from lightning_sft.held_out import too_few
from lightning_sft.models.beside_text import beside_text
from lightning_sft.models.capability import capability, fastest
from lightning_sft.training.schedules import warmup_length
from lightning_sft.units import adapter_kind, count, plural

_LONGEST = 160


def facts_of_run(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each fact, in the order of reading."""
    fits = trainer.state.fn == "fit"
    yield from _model(module)
    if fits:
        yield from _trained(module)
    objective = getattr(module, "objective", None)
    if isinstance(objective, nn.Module):
        yield "Objective", name_of(objective)
    yield from _data(trainer, module)
    if fits:
        yield from _plan(trainer)
        yield from _rate(trainer, module)
    yield "Precision", _precision(trainer, module)
    if fits:
        yield from _batches(trainer, module)
    yield "Device", _device(trainer)
    if fits and (seed := os.environ.get("PL_GLOBAL_SEED")):
        yield "Seed", seed
    folder = run_folder(trainer) if fits else None
    if folder is not None:
        yield "Folder", str(folder)
    if trainer.ckpt_path:
        checkpoint = Path(trainer.ckpt_path)
        inside = folder is not None and folder in checkpoint.parents
        yield "From", f"{checkpoint.relative_to(folder)} in it" if inside and folder else str(checkpoint)


def name_of(objective: nn.Module) -> str:
    """Return an objective with its arguments in one line, such as ``PowerFamily(alpha=1.0)``."""
    text = " ".join(repr(objective).split()).replace("( ", "(").replace(" )", ")")
    text = text.removesuffix("()")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _values(parameters: Iterator[nn.Parameter]) -> dict[bool, int]:
    """Return how many values are trained and how many are frozen; where ranks hold parts, of the whole."""
    found = {True: 0, False: 0}
    for p in parameters:
        found[p.requires_grad] += _count(p)
    return found


def _count(p: nn.Parameter) -> int:
    """Return how many values a parameter stands for."""
    if isinstance(packed := getattr(getattr(p, "quant_state", None), "shape", None), torch.Size):
        return packed.numel()  # bitsandbytes keeps two values of 4 bits in a byte
    return int(getattr(p, "ds_numel", p.numel()))  # DeepSpeed's stage 3 leaves an empty shell


def _adapter_values(scorer: Any) -> int:
    """Return how many values an adapter adds to a model; 0 without one."""
    model = getattr(scorer, "model", None)
    prefix = getattr(model, "prefix", None) if getattr(model, "peft_config", None) else None
    prefix = getattr(getattr(model, "base_model", None), "prefix", None) if prefix is None else prefix
    if model is None or not isinstance(prefix, str) or not prefix:
        return 0
    return sum(_values(p for name, p in model.named_parameters() if prefix in name).values())


def _model(module: LightningModule) -> Iterator[tuple[str, str]]:
    scorer, settings = getattr(module, "scorer", None), getattr(module, "settings", None)
    values = _values(module.parameters())
    causal_lm = getattr(scorer, "causal_lm", None)
    kind = type(module if causal_lm is None else causal_lm).__name__
    weights = next((p for p in module.parameters() if not p.requires_grad and p.is_floating_point()), None)
    weights = next(module.parameters(), None) if weights is None else weights
    dtype = "" if weights is None else f", {str(weights.dtype).removeprefix('torch.')}"
    quantised = getattr(settings, "quantization", None)
    name = getattr(settings, "name", None)
    total = sum(values.values())
    adapter = _adapter_values(scorer)  # the model is what it is without them
    size = f"{count(total - adapter)} parameters{f', {quantised}' if quantised else dtype}"
    yield "Model", f"{name} ({kind}), {size}" if name else f"{kind}, {size}"


def _trained(module: LightningModule) -> Iterator[tuple[str, str]]:
    values = _values(module.parameters())
    total = sum(values.values())
    text = f"{count(values[True])} of {count(total)} parameters ({values[True] / max(total, 1):.2%})"
    scorer = getattr(module, "scorer", None)
    configs = getattr(getattr(scorer, "model", None), "peft_config", None)
    if isinstance(configs, dict) and configs:
        config = next(iter(configs.values()))
        sizes = [f"{name} {getattr(config, key)}" for name, key in (("r", "r"), ("alpha", "lora_alpha"))
                 if isinstance(getattr(config, key, None), int | float)]  # fmt: skip
        kind = adapter_kind(type(config).__name__)
        text += f": {' '.join([kind, ', '.join(sizes)]).strip()}"
    reach = getattr(scorer, "adapter_reach", None)
    yield "Trains", text
    causal_lm = getattr(scorer, "causal_lm", None)
    beside = () if causal_lm is None else beside_text(causal_lm)
    if beside:
        yield "", f"Rows of text do not reach {', '.join(beside)}: frozen."
    if reach is not None and reach.weights:
        yield "", str(reach)


def _data(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, str]]:
    reports: dict[str, Any] = getattr(getattr(trainer, "datamodule", None), "report", {})
    for i, (name, report) in enumerate(reports.items()):
        counted = count(int(report.trained.sum()))
        packs = f", in {plural(report.packs, 'pack')}" if report.packs else ""
        # what is not the training set is scored by the same tokens, and trained on none
        tokens = f", {count(report.tokens)} tokens, {counted} of them {'trained' if name == 'train' else 'scored'}"
        text = f"{name} {plural(report.rows, 'row')}{packs}{'' if name == 'predict' else tokens}"
        yield "" if i else "Data", text
        changed = {"left out as too long": report.dropped, "shortened": report.truncated, "bad": len(report.rejected)}
        told = ", ".join(f"{number:,} {what}" for what, number in changed.items() if number)
        if told:
            yield "", f"{' ' * len(name)} {told} (`lightning inspect` shows which)"
        if name == "val" and (few := too_few(report.rows)):
            yield "", f"{' ' * len(name)} {few}"


def _plan(trainer: Trainer) -> Iterator[tuple[str, str]]:
    total = trainer.estimated_stepping_batches
    datamodule = getattr(trainer, "datamodule", None)
    size, (ranks, _) = getattr(datamodule, "batch_size", None), data_parallel_size_and_rank(trainer)
    each, epoch = "", 0  # steps of an epoch
    if isinstance(size, int):
        accumulated = trainer.accumulate_grad_batches
        unit = "pack" if getattr(datamodule, "packed", False) else "row"
        factors = [str(size), *([str(accumulated)] if accumulated > 1 else []), *([str(ranks)] if ranks > 1 else [])]
        per_step = size * accumulated * ranks
        report = getattr(datamodule, "report", {}).get("train")
        # an epoch ends with its last batch, which may be smaller
        epoch = math.ceil((getattr(report, "packs", 0) or getattr(report, "rows", 0)) / per_step)
        each = f", each of {plural(per_step, unit)}" + (f" ({' x '.join(factors)})" if len(factors) > 1 else "")
    if total == math.inf:
        yield "Steps", f"as many as there is time for{each}"
        return
    begun = f" ({trainer.global_step:,} of them done)" if trainer.global_step else ""
    epochs = f"{total / epoch:.3g}" if epoch else ""
    passes = f", {epochs} epoch{'s' * (epochs != '1')}" if epochs else ""
    yield "Steps", f"{int(total):,}{begun}{each}{passes}"
    if total < trainer.max_steps:
        yield "", f"max_epochs={trainer.max_epochs} ends the run before max_steps={trainer.max_steps} (-1: no such end)"


def _rate(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, str]]:
    if not trainer.optimizers:
        return
    optimizer = trainer.optimizers[0]
    rates = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]
    rate = f"{rates[0]:g}" if min(rates) == max(rates) else f"{min(rates):g} to {max(rates):g}"
    settings = getattr(module, "optimization", None)
    made = [c.scheduler for c in trainer.lr_scheduler_configs]
    schedule = getattr(settings, "lr_scheduler", None)
    named = schedule if isinstance(schedule, str) else (type(made[0]).__name__ if made else "constant")
    warmup = ""
    if settings is not None and trainer.estimated_stepping_batches != math.inf:
        steps = warmup_length(trainer.estimated_stepping_batches, settings.warmup_steps, settings.warmup_ratio)
        warmup = f", {plural(steps, 'step')} of warm-up" if steps else ""
    kind = type(optimizer)
    optimizer_name = next((c.__name__ for c in kind.__mro__ if c.__module__.startswith("torch.optim")), kind.__name__)
    yield "Rate", f"{rate}, {named}{warmup}; {optimizer_name}"


def _precision(trainer: Trainer, module: LightningModule) -> str:
    settings = getattr(module, "settings", None)
    asked = str(trainer.precision)
    hparams = getattr(module, "hparams", {})
    if getattr(settings, "dtype", None) == "fastest":
        _, why = fastest(capability(trainer.strategy.root_device), bool(getattr(settings, "has_adapter", False)))
        return f"{asked}. {why}"
    dtype = getattr(settings, "dtype", None) or hparams.get("dtype")
    return f"{asked}" + (f", weights in {dtype} (model.dtype)" if dtype else "")


def _batches(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, str]]:
    batches = getattr(getattr(trainer, "datamodule", None), "train_batches", None)
    if batches is None:
        return
    _, why = is_flat(batches.settings.layout, module)
    yield "Batches", f"{batches.settings.order}. {why or 'Rows of a batch are padded to its longest.'}"


def _device(trainer: Trainer) -> str:
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else capability(device).name
    ranks = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    strategy = f", {type(trainer.strategy).__name__}" if trainer.world_size > 1 else ""
    return f"{ranks}{device.type} ({name}){strategy}"
