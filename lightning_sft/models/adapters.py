"""peft adapters that act inside modules; the others are refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper
from torch import nn
from transformers import PreTrainedModel

from lightning_sft.errors import UserError, first_line
from lightning_sft.models.one_pass_lora import add_in_one_pass
from lightning_sft.models.reach import kinds_of
from lightning_sft.models.targets import (
    ALL_LINEAR,
    is_plain_linear,
    reaches_single_weights,
    renamed_when_loaded,
    replace_fields,
    resolve_targets,
)
from lightning_sft.models.tuners import require_served
from lightning_sft.places import ADAPTER_CONFIG


def add_adapter(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """Freeze a model and put a fresh adapter into it; adapter weights are fp32 whatever the model's dtype.

    Raises:
        UserError: an adapter that works on the prompt instead of inside modules, one whose targets do not exist, or one
            that peft could not load again.
    """
    require_served(config)
    if config.task_type is None:
        config.task_type = TaskType.CAUSAL_LM
    asked = getattr(config, "target_modules", None)
    resolved = resolve_targets(config, model)
    dropout = float(getattr(resolved, "lora_dropout", 0.0)) if reaches_single_weights(resolved, model) else 0.0
    if dropout:
        resolved = replace_fields(resolved, lora_dropout=0.0)
    try:
        with warnings.catch_warnings():
            _quiet_peft()
            adapted = get_peft_model(model, resolved)
    except ValueError as error:
        raise UserError(
            f"The adapter {type(config).__name__} with target_modules={_readable(asked)} does not fit "
            f"{type(model).__name__}: {first_line(error)} Linear modules that exist: "
            f"{', '.join(_linear_names(model))}; or use target_modules: {ALL_LINEAR}."
        ) from error
    assert isinstance(adapted, PeftModel)
    _refuse_unfit_layers(adapted, model)
    if dropout:
        _drop_out(adapted, dropout)
    add_in_one_pass(adapted)
    return adapted


def _drop_out(model: PeftModel, share: float) -> None:
    """Give LoRA layers their dropout; those on single weights (experts) have no input to drop."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and not hasattr(module, "parameter_name"):
            for name in module.lora_dropout:
                module.lora_dropout[name] = nn.Dropout(share)


def _refuse_unfit_layers(adapted: PeftModel, model: PreTrainedModel) -> None:
    """Raise for an adapter around layers that are no plain products, or that peft would not find when it loads it."""
    around = {
        name: module.get_base_layer()
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not hasattr(module, "parameter_name")
    }
    odd = {name: base for name, base in around.items() if isinstance(base, nn.Linear) and not is_plain_linear(base)}
    config = adapted.peft_config["default"]
    lost = renamed_when_loaded([n for n, base in around.items() if isinstance(base, nn.Linear)], config, model)
    if not odd and not lost:
        return
    names = kinds_of([*odd, *sorted(lost)])
    kinds = ", ".join(sorted({type(base).__name__ for base in odd.values()}))
    why = (
        f"{kinds} does more than a product with its weight, which an adapter around it would break"
        if odd
        else "transformers renames these weights when it reads a checkpoint, so peft could not load the adapter again"
    )
    leaves = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
    raise UserError(
        f"The adapter is put on {', '.join(names)} of {type(model).__name__}: {why}. Leave them out with "
        f"exclude_modules: [{leaves}], or use target_modules: {ALL_LINEAR}, which does."
    )


def load_adapter(model: PreTrainedModel, path: str) -> PeftModel:
    """Freeze a model and put a stored adapter into it, to go on training it; its weights are fp32.

    Args:
        model: the model that the adapter was trained on.
        path: a folder that peft wrote, such as one of ``lightning-sft export``.

    Raises:
        UserError: no such folder, an adapter that works on the prompt, or one of another model.
    """
    require_served(stored_config(path))
    try:
        with warnings.catch_warnings():
            _quiet_peft()
            # weights that are missing are an adapter of another model
            warnings.filterwarnings("error", message="Found missing adapter keys", category=UserWarning)
            adapted = PeftModel.from_pretrained(model, str(Path(path).expanduser()), is_trainable=True)
    except (ValueError, RuntimeError, UserWarning) as error:
        raise UserError(
            f"The adapter {path!r} does not fit {type(model).__name__}: {first_line(error)} Give "
            "the model that it was trained on as model_name_or_path (base_model_name_or_path in its "
            "adapter_config.json)."
        ) from error
    assert isinstance(adapted, PeftModel)
    add_in_one_pass(adapted)
    return adapted


def stored_config(path: str) -> PeftConfig:
    """Return the configuration of a stored adapter.

    Raises:
        UserError: the path is no folder that holds one.
    """
    folder = Path(path).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        what = f"it holds {sorted(p.name for p in folder.iterdir())[:10]}" if folder.is_dir() else "there is none"
        raise UserError(
            f"adapter_path is {path!r}, which must be a folder with an adapter_config.json; {what} (looked from "
            f"{Path.cwd()}). `lightning-sft export` and peft's save_pretrained write such folders."
        )
    config = PeftConfig.from_pretrained(str(folder))
    assert isinstance(config, PeftConfig)
    return config


def require_stored_rows(model: PreTrainedModel, rows: range, name: str) -> None:
    """Raise unless an adapter trains, and thus stores, the rows that embeddings got for added tokens.

    Args:
        model: with its adapter.
        rows: the new rows, drawn at random; nothing else brings them back.
        name: of the model, for the message.

    Raises:
        UserError: says which settings store the rows.
    """
    layers: tuple[nn.Module, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    if all(_stores(layer, rows) for layer in layers):
        return
    names = [next(n for n, m in model.named_modules() if m is layer).rpartition(".")[2] for layer in layers]
    tied = bool(model.config.tie_word_embeddings)
    ids = f"[{', '.join(map(str, rows))}]" if len(rows) <= 16 else f"[{rows.start}, ..., {rows.stop - 1}]"
    few = ids if tied else f"{{{names[0]}: {ids}, {names[1]}: {ids}}}"
    raise UserError(
        f"The embeddings of {name!r} grew from {rows.start} to {rows.stop} rows for added tokens. The new rows were "
        "drawn at random; frozen under the adapter they would neither learn nor be in a checkpoint. Train them with "
        f"it: trainable_token_indices: {few}, or whole embeddings: modules_to_save: [{', '.join(names)}]"
        f"{' with ensure_weight_tying: true' if tied else ''}."
    )


def _stores(layer: nn.Module, rows: range) -> bool:
    if isinstance(layer, TrainableTokensWrapper):
        indices = layer.token_adapter.token_indices
        return all(set(rows) <= set(of_adapter) for of_adapter in indices.values())
    weight = layer.weight
    return isinstance(weight, torch.Tensor) and weight.requires_grad


def _quiet_peft() -> None:
    """Ignore warnings of peft about what peft does itself."""
    # peft 0.21 asks transformers 5.23 for an attribute under its old name
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    # it sets the rank of fused experts by a pattern of names, and does not find it among modules: experts are weights
    warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")


def _linear_names(model: nn.Module) -> list[str]:
    return sorted({name.rpartition(".")[2] for name, m in model.named_modules() if _is_linear(m)})


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _readable(targets: object) -> object:
    return sorted(targets) if isinstance(targets, set) else targets
