"""Which modules and weights an adapter is put into: "all-linear", and "everything" that it leaves out."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners import tuners_utils
from peft.utils import transformers_weight_conversion as conversion
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lightning_sft.errors import UserError
from lightning_sft.models.beside_text import in_text

ALL_LINEAR = "all-linear"
EVERYTHING = "everything"
"""For ``target_modules``: every linear layer of the language part but the unembedding, and the weights of experts."""


def adaptable_weights(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the weights of linear layers, the unembedding aside, and of experts stored in one tensor, by name.

    Those of towers for images and sound are left out, as rows of text do not reach them.
    """
    head = model.get_output_embeddings()
    found: dict[str, nn.Parameter] = {}
    modules = dict(model.named_modules())
    for name in in_text(modules, model):
        module = modules[name]
        if module is head or isinstance(module, nn.modules.conv._ConvNd | nn.Embedding):
            continue
        for own, weight in module.named_parameters(recurse=False):
            linear = own == "weight" and isinstance(module, nn.Linear | Conv1D)
            of_experts = weight.ndim == 3 and "expert" in f"{name} {type(module).__name__}".lower()
            if linear or of_experts:
                found[f"{name}.{own}"] = weight
    return found


def is_plain_linear(module: nn.Module) -> bool:
    """Return whether a module is a product with its weight and no more, as adapters around it take for granted."""
    if isinstance(module, Conv1D):
        return True
    # layers of quantisation libraries have a forward of their own, which peft knows
    of_library = not type(module).__module__.startswith("transformers")
    return isinstance(module, nn.Linear) and (type(module).forward is nn.Linear.forward or of_library)


def resolve_targets(config: PeftConfig, model: PreTrainedModel) -> Any:
    """Return a configuration whose ``target_modules`` peft can work with on this model, and load again.

    "all-linear" stays as it is where peft's reading of it works; else it becomes the names of those linear layers that
    can be adapted. "everything" becomes names of linear layers and of single weights (peft's ``target_parameters``).

    Args:
        config: as it was given; it is not changed.
        model: without an adapter.

    Raises:
        UserError: "everything" for an adapter that cannot work on single weights.
    """
    asked = getattr(config, "target_modules", None)
    word = asked.lower() if isinstance(asked, str) else None
    if word == EVERYTHING:
        return _everything(config, model)
    if word != ALL_LINEAR:
        return config
    names = linear_names(model)
    good = adaptable_names(in_text(names, model), config, model)
    without_experts = isinstance(config, LoraConfig) and _has_variant(config)
    if set(names) == set(good) and not without_experts:
        return config
    chosen = replace_fields(config)
    read = replace_fields(
        config
    )  # as peft reads it: for some mixtures of experts "all-linear" names their experts, too
    conversion.convert_peft_config_for_transformers(read, model=model, conversions=None)
    if read.target_modules == asked:
        chosen.target_modules = set(good)
        return chosen
    leaves = set(read.target_modules)
    chosen.target_modules = {name for name in good if name.rpartition(".")[2] in leaves}
    if not without_experts:
        chosen.target_parameters = sorted(read.target_parameters)
        chosen.rank_pattern, chosen.alpha_pattern = read.rank_pattern, read.alpha_pattern
    return chosen


def linear_names(model: PreTrainedModel) -> list[str]:
    """Return the names of all linear layers but the unembedding, plain or not."""
    head = model.get_output_embeddings()
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]


def adaptable_names(names: Iterable[str], config: PeftConfig, model: PreTrainedModel) -> list[str]:
    """Return those linear layers that this adapter can be put around, and found again when it is loaded."""
    plain = [name for name in names if is_plain_linear(model.get_submodule(name))]
    allowed = [name for name in plain if _peft_allows(name, config, model)]
    lost = renamed_when_loaded(allowed, config, model)
    return [name for name in allowed if name not in lost]


def renamed_when_loaded(names: Iterable[str], config: PeftConfig, model: PreTrainedModel) -> set[str]:
    """Return the modules whose adapter peft would look for under another name when it loads it.

    transformers renames weights of some checkpoints while reading them. peft renames those of a stored LoRA likewise,
    also where the module has the new name already.
    """
    names = list(names)
    convert = getattr(conversion, "convert_peft_adapter_state_dict_for_transformers", None)
    if convert is None or not isinstance(config, LoraConfig):
        return set()
    rank_one = torch.zeros(1, 1)
    stored = {f"base_model.model.{n}.lora_{side}.weight": rank_one.clone() for n in names for side in "AB"}
    try:
        found = convert(model, replace_fields(config, target_modules=set(names)), stored)
    except Exception:  # what does not convert is not found either; one by one tells which
        return {n for n in names if len(names) > 1 and renamed_when_loaded([n], config, model)} or set(names)
    kept = {key.replace(".default", "") for key in found}
    return {n for n in names if f"base_model.model.{n}.lora_A.weight" not in kept}


def _everything(config: PeftConfig, model: PreTrainedModel) -> Any:
    if not isinstance(config, LoraConfig) or _has_variant(config):
        what = type(config).__name__ + (" with use_dora" if getattr(config, "use_dora", False) else "")
        raise UserError(
            f"target_modules is {EVERYTHING!r} for {what}, which cannot work on single weights, such as those of "
            f"experts. Use a plain peft.LoraConfig, or target_modules: {ALL_LINEAR}."
        )
    chosen = replace_fields(config)
    good = adaptable_names(in_text(linear_names(model), model), config, model)
    chosen.target_modules = set(good)
    read = replace_fields(chosen)
    conversion.convert_peft_config_for_transformers(read, model=model, conversions=None)
    # peft takes what has the name of an expert of older versions for one, wherever it stands
    chosen.target_modules = set(good) & set(read.target_modules)
    rest = adaptable_weights(model).keys() - {f"{name}.weight" for name in chosen.target_modules}
    owners = {name: owner for name in rest if _peft_allows(owner := name.rpartition(".")[0], config, model)}
    lost = renamed_when_loaded(set(owners.values()), config, model)
    chosen.target_parameters = sorted(
        {name for name, owner in owners.items() if owner not in lost} | set(config.target_parameters or ())
    )
    return chosen


def _peft_allows(name: str, config: PeftConfig, model: PreTrainedModel) -> bool:
    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    try:
        if check is not None:
            check(config, model, name.rpartition(".")[2])
    except ValueError:
        return False
    return True


def _has_variant(config: LoraConfig) -> bool:
    """Return whether a LoRA is of a kind that peft does not put on single weights."""
    return bool(config.use_dora or getattr(config, "kasa_config", None))


def reaches_single_weights(config: PeftConfig, model: PreTrainedModel) -> bool:
    """Return whether peft puts a LoRA on single weights, for which it takes no dropout."""
    if not isinstance(config, LoraConfig):
        return False
    read = replace_fields(config)
    conversion.convert_peft_config_for_transformers(read, model=model, conversions=None)
    return bool(read.target_parameters)


def replace_fields(config: Any, **fields: Any) -> Any:
    """Return a copy of a configuration with other fields; large objects in it, such as tensors, are shared."""
    changed = copy.copy(config)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, dict | list | set):
            setattr(changed, field.name, copy.copy(value))
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed
