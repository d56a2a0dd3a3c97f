"""A small copy of a model, with few layers and large random weights: what its architecture does, seen cheaply.

Whether a model sees the future, or one packed document the next, is decided by its code and its configuration, not by
its weights. Weights near their random start hide it, and a model of full size makes it slow to find out.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from lightning_sft.models.access import text_config
from lightning_sft.models.attention import attention_of_parts

VOCABULARY = 512
WINDOW = 16
"""Positions of every window and chunk of the copy, so that short documents are longer than they are."""

POSITIONS = 256
"""Positions that the copy has at least."""

_WIDTH = 128  # of what can be narrowed without touching anything else
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
_WINDOWS = re.compile(r"window|chunk_size|block_size|local_attention|index_topk$|indexer_budget")
_VOCABULARIES = re.compile(r"^(vocab_size.*|n_words)$")
_POSITIONS = re.compile(
    r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|max_target_positions)$"
)
_WIDTHS = re.compile(r"^(intermediate_size|ffn_dim|\w*ffn_hidden_size|\w*expert\w*_intermediate_size)$")
_EXPERTS = re.compile(r"^(num_experts|n_routed_experts|num_local_experts|moe_num_experts)$")
_CHOSEN = re.compile(r"^(num_experts_per_tok|num_experts_per_token|moe_topk|moe_k|top_k_experts|moe_top_k)$")
_GROUPS = re.compile(r"^(n_group|topk_group|num_expert_group)$")
_TRAITS = (
    "sliding_window",
    "is_sliding",
    "attention_type",
    "layer_type",
    "use_rope",
    "is_causal",
    "is_kv_shared_layer",
)


class CopyFailed(Exception):
    """No small copy of an architecture can be made; the message says what was tried last."""


def small_copy(model: PreTrainedModel, **overrides: Any) -> PreTrainedModel:
    """Return a copy of a model's architecture: its first layers of every kind, narrow, in fp32, on the CPU.

    Windows and chunks are `WINDOW` positions, the vocabulary is at most `VOCABULARY`. Weights are drawn so that every
    layer passes on about as much as it gets, by a generator of its own. The model's own weights are not read, so it may
    be sharded or quantised.

    Args:
        model: any causal language model of transformers.
        overrides: fields of the text configuration to change.

    Raises:
        CopyFailed: the architecture cannot be made smaller in any of the ways tried.
    """
    kinds = [_signature(layer) for layer in _layers(model)]
    # how many layers from the first on hold one of every kind
    first = max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])
    failure: Exception | None = None
    for layers, narrow in ((first, True), (first, False), (None, True), (None, False)):
        try:
            with undisturbed():
                config = _small_config(model, layers, narrow, overrides)
                copy: PreTrainedModel = _class(model)(config)
                _draw(copy.float().eval().requires_grad_(False))
                logits = copy(input_ids=token_ids(copy, 2 * WINDOW)[None], use_cache=False).logits
                if not bool(logits.isfinite().all()):
                    raise ValueError("its logits are not finite")
        except Exception as error:  # whatever an architecture's code raises on sizes that it does not expect
            failure = error
            continue
        if set(kinds) <= {_signature(layer) for layer in _layers(copy)} or layers is None:
            return copy
        failure = ValueError(f"its first {layers} layers are of other kinds than those of the model")
    raise CopyFailed(f"{type(failure).__name__}: {failure}")


@contextlib.contextmanager
def undisturbed(device: str = "cpu") -> Iterator[None]:
    """Work on a device in fp32, whatever contexts Lightning's plugins have set, and leave its random streams alone."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(), torch.device(device), torch.autocast(device, enabled=False), torch.no_grad():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(dtype)


def token_ids(model: PreTrainedModel, count: int, seed: int = 0) -> Tensor:
    """Return random token ids, (count,), int64, none of which means anything to the model."""
    special = {int(v) for k, v in _flat(model.config.to_dict()) if "token" in k and isinstance(v, int)}
    rows = min(VOCABULARY, int(getattr(text_config(model), "vocab_size", VOCABULARY)))
    usual = torch.tensor([i for i in range(rows) if i > 4 and i not in special] or [0])
    drawn = torch.randint(len(usual), (count,), generator=torch.Generator().manual_seed(seed), device="cpu")
    return usual[drawn]


@torch.no_grad()
def _draw(model: PreTrainedModel) -> None:
    """Draw large weights: those of a matrix by its inputs, so that no layer is too weak for a leak to show."""
    generator = torch.Generator().manual_seed(5)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator, device="cpu")
        if parameter.ndim < 2:
            parameter.add_(0.05 * noise)
            continue
        inputs = 1 if id(parameter) in tables else parameter.shape[-1]
        if parameter.ndim > 2 and parameter.shape[1] > 1:  # experts are stored either way round
            inputs = max(parameter.shape[1:])
        parameter.copy_(noise * inputs**-0.5)


def _small_config(model: PreTrainedModel, layers: int | None, narrow: bool, overrides: dict[str, Any]) -> Any:
    whole = model.config
    values = whole.to_dict()
    text = text_config(model)
    key = next((k for k, v in vars(whole).items() if v is text), None)
    part = values if key is None else values[key]
    total = _layer_count(model)
    for group in (values,) if key is None else (values, part):
        _shrink(group, narrow)
    if layers is not None and total is not None:
        part.update({k: layers for k in _LAYERS if part.get(k) == total})
        part.update({k: v[:layers] for k, v in part.items() if isinstance(v, list) and len(v) == total})
    values.pop("quantization_config", None)
    part.update(overrides)
    config = type(whole).from_dict(values)
    config._attn_implementation = attention_of_parts(whole, lambda part, own: own and _on_a_cpu(own))
    config.use_cache = False
    return config


def _shrink(values: dict[Any, Any], narrow: bool) -> None:
    """Make windows, vocabularies and, if asked, what can be narrowed smaller, in place."""
    for name, value in list(values.items()):
        if not isinstance(name, str):
            continue  # id2label and its like
        if isinstance(value, dict):
            _shrink(value, narrow)
        elif isinstance(value, bool) or not isinstance(value, int):
            continue
        elif name.endswith(("token_id", "token_index")):
            if value >= VOCABULARY:
                values[name] = 0 if name == "pad_token_id" else VOCABULARY - 1
        else:
            values[name] = _smaller(name, value, narrow)


def _smaller(name: str, value: int, narrow: bool) -> int:
    if _WINDOWS.search(name) and not name.startswith("max_"):
        return min(value, WINDOW)
    if _VOCABULARIES.match(name):
        return min(value, VOCABULARY)
    if _POSITIONS.match(name):
        return max(value, POSITIONS)
    if not narrow:
        return value
    for pattern, most in ((_WIDTHS, _WIDTH), (_EXPERTS, 8), (_CHOSEN, 2), (_GROUPS, 1)):
        if pattern.match(name):
            return min(value, most)
    return value


def _on_a_cpu(attention: str) -> str:
    return "sdpa" if "flash" in attention or attention == "flex_attention" else attention


def _layer_count(model: PreTrainedModel) -> int | None:
    config = text_config(model)
    return next((int(v) for k in _LAYERS if isinstance(v := getattr(config, k, None), int)), None)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder's layers: the largest list of as many modules as the configuration counts."""
    count = _layer_count(model)
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    return max(lists, key=lambda found: sum(len(list(layer.modules())) for layer in found), default=[])


def _class(module: nn.Module) -> type[Any]:
    """Return the class that a module had before it was sharded."""
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))


def _signature(layer: nn.Module) -> tuple[tuple[object, ...], ...]:
    """Return what makes a layer of another kind than the next: its modules and what they say of their attention.

    Plain layers of torch are all alike here, and adapters and experts, of which the copy has fewer, are left out.
    """
    return tuple(
        (name.replace(".base_layer", ""), _class(m).__name__, *(_coarse(vars(m).get(trait)) for trait in _TRAITS))
        for name, m in layer.named_modules()
        if not type(m).__module__.startswith(("torch.nn", "peft", "lightning_sft"))
        and not name.rpartition(".")[2].isdigit()
    )


def _coarse(value: object) -> object:
    """A window of any size is a window."""
    return "set" if isinstance(value, int) and not isinstance(value, bool) else value


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value)
        elif isinstance(value, list):
            yield from ((str(name), v) for v in value)
        else:
            yield str(name), value
