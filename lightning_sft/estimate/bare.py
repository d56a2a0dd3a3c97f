"""A model as its configuration describes it, with adapter and without any weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lightning_sft.errors import UserError, first_line
from lightning_sft.hub import require_on_hub
from lightning_sft.models.adapters import add_adapter
from lightning_sft.models.build import ModelSettings
from lightning_sft.models.checkpointing import enable_checkpointing
from lightning_sft.models.loading import BAD_CONFIG, change_fields
from lightning_sft.places import PACKAGE_SCHEME, package_file

#: attention kernels that need a package or a GPU; torch's own holds about as much
_SDPA_FOR = ("flash", "sage", "flex", "paged", "kernels")
_SHARDED_BY_RANKS = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "num_global_key_value_heads")


def read_config(settings: ModelSettings) -> Any:
    """Return the configuration of a model: config.json of a folder or the hub, or the header of a GGUF file.

    Args:
        settings: which model.

    Raises:
        UserError: there is none, or of a kind that transformers does not know.
    """
    source = settings.name
    more: dict[str, Any] = {"trust_remote_code": settings.trust_remote_code}
    path = package_file(source) if source.startswith(PACKAGE_SCHEME) else Path(source).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"There is no GGUF file {source!r} (looked from {Path.cwd()}).")
        place, more["gguf_file"] = str(path.parent), path.name
    elif path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"The folder {source!r} has no config.json, so nothing says what the model is.")
    else:
        require_on_hub(source)
        place, more["revision"] = str(path) if path.exists() else source, settings.revision
    try:
        config = AutoConfig.from_pretrained(place, **more)
    except BAD_CONFIG as error:
        raise UserError(
            f"No configuration could be read for {source!r}: {first_line(error)} Allowed: a hub name, a folder with "
            "config.json, a .gguf file or pkg://package/file.gguf, of an architecture that the installed transformers "
            "knows; others need trust_remote_code: true, or a newer transformers."
        ) from error
    change_fields(config, settings.config_overrides or {})
    config.use_cache = False
    return config


def split_config(config: Any, ranks: int) -> None:
    """Make a configuration that of one rank's part of every layer, in place.

    Args:
        config: of the model.
        ranks: that share out the layers (tensor parallelism).

    Raises:
        UserError: the layers cannot be split over so many.
    """
    text = config.get_text_config(decoder=True)
    sizes = {name: value for name in _SHARDED_BY_RANKS if isinstance(value := getattr(text, name, None), int)}
    odd = {name: value for name, value in sizes.items() if value % ranks}
    if not getattr(text, "base_model_tp_plan", None) or odd:
        why = ", ".join(f"{name} is {value}" for name, value in odd.items()) or "it has no plan for it in transformers"
        raise UserError(
            f"The layers of a {text.model_type!r} model cannot be split over {ranks} devices: {why}. Set "
            f"tensor_parallel_size to a number that divides {', '.join(sizes) or 'its heads'}, or to 1."
        )
    if getattr(text, "head_dim", None) is None:
        text.head_dim = text.hidden_size // text.num_attention_heads
    for name, value in sizes.items():
        setattr(text, name, value // ranks)


def bare_model(settings: ModelSettings, config: Any) -> nn.Module:
    """Return the model of a configuration, with the adapter of the settings, on the meta device.

    Args:
        settings: their dtype is decided.
        config: from `read_config`.

    Raises:
        UserError: not a causal language model, or an adapter that does not fit it.
    """
    attention = settings.attn_implementation
    if attention is None or any(part in attention for part in _SDPA_FOR):
        attention = None
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=attention,
                trust_remote_code=settings.trust_remote_code,
            )
    except (OSError, ValueError, TypeError, ImportError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{settings.name!r} is a {config.model_type!r} configuration, of which no causal language model could be "
            f"made: {first_line(error)}"
        ) from error
    assert isinstance(model, PreTrainedModel)
    if settings.gradient_checkpointing:
        enable_checkpointing(model)
    model.train()
    adapter = copy.deepcopy(settings.adapter_config)  # peft writes the base's name into it
    if adapter is None:
        return model
    with torch.device("meta"):
        if settings.adapter_path is None:
            adapter.base_model_name_or_path = None  # else peft warns of another one
            return add_adapter(model, adapter)
        adapter.inference_mode = False
        return get_peft_model(model, adapter)


def without_data(model: nn.Module) -> None:
    """Put tensors of the CPU that hold no data in the place of a model's parameters and buffers.

    Must run under ``FakeTensorMode``: kernels are then chosen as on a device, and nothing is computed.
    """
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the old one, so that its id is not used again

    def stand_in(old: Tensor) -> Tensor:
        if id(old) not in made:
            new: Tensor = torch.empty(old.shape, dtype=old.dtype, device="cpu")
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
            made[id(old)] = (new, old)
        return made[id(old)][0]

    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = stand_in(tensor)  # type: ignore[assignment]


def bytes_of(tensors: Any) -> int:
    """Return the bytes of tensors, each counted once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
