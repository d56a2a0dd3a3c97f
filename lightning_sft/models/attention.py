"""Attention document by document: packed rows without a mask of everything against everything."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightning_sft.errors import UserError

PER_DOCUMENT = "per_document"
"""Name of this implementation for ``attn_implementation``."""

SHORT = 512
"""Tokens up to which 16-bit documents on a CPU are attended to by plain products (docs/performance_log.md)."""


def attention_of_parts(
    config: Any, choose: Callable[[Any, str | None], str | None] = lambda part, own: own
) -> dict[str, Any]:
    """Return the attention of a model and of its parts, in the form in which transformers takes it back.

    One name for all would not do: a tower for images or sound may know fewer implementations than the language part.

    Args:
        config: of the model.
        choose: takes the configuration of the model or a part, and the attention that it has; returns the one to have.
    """
    parts = ((name, getattr(config, name, None)) for name in config.sub_configs)
    inside = {name: attention_of_parts(part, choose) for name, part in parts if part is not None}
    return {"": choose(config, config._attn_implementation), **inside}


def document_sizes(position_ids: Tensor) -> Tensor:
    """Return the tokens of each document of one row, (documents,), int64, on the CPU.

    Args:
        position_ids: (1, length), beginning at 0 in each document.
    """
    starts = torch.nonzero(position_ids[0] == 0)[:, 0].cpu()
    return torch.diff(starts, append=torch.tensor([position_ids.shape[1]]))


def attention_per_document(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend causally within each document; with a usual mask, attend as "sdpa" does.

    On a CPU in a call for each document; on a GPU in 16 bits by one call of torch's kernel for several lengths, else
    under one mask.

    An attention function of transformers; see there for what is not explained here.

    Args:
        module: the attention layer.
        query: (batch, heads, length, dim); a batch of packed rows is one long row.
        key: (batch, key heads, length, dim).
        value: (batch, key heads, length, dim).
        attention_mask: of int64 and shape (1, 1, 1, documents): the documents' sizes, in a form that models hand on to
            their layers as a finished mask; else a usual mask.
        dropout: share of the weights that is dropped.
        scaling: factor on the products; default 1 / sqrt(dim).
        sliding_window: how many positions a position sees, itself included.
        softcap: c of ``c * tanh(products / c)``.
        kwargs: what other implementations need.

    Returns:
        (batch, length, heads, dim), and no weights.

    Raises:
        UserError: the model uses attention sinks or a position bias, which are not supported here.
    """
    if unknown := [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]:
        raise UserError(
            f"{type(module).__name__} gives its attention {', '.join(unknown)}, which attn_implementation: "
            f"{PER_DOCUMENT} does not know. Set attn_implementation: eager."
        )
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return _attention(module, query, key, value, attention_mask, dropout, scaling, softcap)
    if query.is_cuda:
        ends, longest = kwargs.get("cu_seq_lens_q"), kwargs.get("max_length_q")
        if ends is None or longest is None:  # not handed on by this architecture: read back from the device
            ends = nn.functional.pad(attention_mask.flatten().cumsum(0), (1, 0)).to(query.device, torch.int32)
            longest = int(attention_mask.max())
        if softcap is None and not (dropout and module.training) and kernel_serves(query, value):
            return _by_kernel(query, key, value, ends, int(longest), scaling, sliding_window), None
        mask = block_mask(ends, query.shape[2], sliding_window)
        return _attention(module, query, key, value, mask, dropout, scaling, softcap)
    sizes = attention_mask.flatten().tolist()
    parts = [
        _attention(module, q, k, v, _window(q, sliding_window), dropout, scaling, softcap)[0]
        for q, k, v in zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
    ]
    return torch.cat(parts, 1), None


def kernel_serves(query: Tensor, value: Tensor) -> bool:
    """Return whether torch's kernel for sequences of several lengths takes queries and values on a GPU, (..., dim).

    It is a flash attention: 16 bits, at most 256 dimensions, a multiple of 8, as many in values as in queries, and a
    GPU of 2020 or later.
    """
    half, dim = query.dtype in (torch.bfloat16, torch.float16), query.shape[-1]
    fits = dim <= 256 and dim % 8 == 0 and value.shape[-1] == dim  # latent attention has values of fewer dimensions
    return half and fits and _kernel() is not None and _is_recent(query.device)


@cache
def _kernel() -> tuple[Callable[..., Any], bool] | None:
    """Return torch's kernel for several lengths, and whether it shares key heads; None where torch has none to use.

    It came with newer versions of torch than the oldest that we take: 2.11 has it with windows, 2.13 with shared heads.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    takes = inspect.signature(varlen_attn).parameters
    return (varlen_attn, "enable_gqa" in takes) if {"scale", "window_size"} <= takes.keys() else None


@cache
def _is_recent(device: torch.device) -> bool:
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    """Attend by torch's kernel for sequences of several lengths, (1, length, heads, dim); nothing is read back."""
    found = _kernel()
    assert found is not None
    kernel, shares = found
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and not shares:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    mixed = kernel(
        *(tensor[0].transpose(0, 1) for tensor in (query, key, value)),
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **({"enable_gqa": True} if groups > 1 and shares else {}),
    )
    assert isinstance(mixed, Tensor)
    return mixed[None]


def block_mask(ends: Tensor, length: int, window: int | None = None) -> Tensor:
    """Return which positions see which where documents lie end to end, (1, 1, length, length), bool.

    Args:
        ends: where documents begin, and where the last one ends, (documents + 1,).
        length: of the row.
        window: how many positions a position sees, itself included.
    """
    sizes = ends.diff()
    number = torch.repeat_interleave(sizes, output_size=length)
    at = torch.arange(length, device=ends.device)
    back = at[:, None] - at
    sees = (number[:, None] == number) & (back >= 0)
    return (sees if window is None else sees & (back < window))[None, None]


def _window(query: Tensor, window: int | None) -> Tensor | None:
    """Return which positions see which, (1, 1, length, length), where a window makes it other than causal."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=query.device)
    back = at[:, None] - at
    return ((back >= 0) & (back < window))[None, None]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
) -> tuple[Tensor, None]:
    """Attend under a bool mask, or causally without one."""
    if softcap is None and mask is None and _is_short(query, key):
        return _causal_products(module, query, key, value, dropout, scaling), None
    if softcap is None:
        return sdpa_attention_forward(module, query, key, value, mask, dropout, scaling)
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    length = query.shape[2]
    if mask is None:
        mask = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).tril(key.shape[2] - length)
    products = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    products = softcap * torch.tanh(products / softcap)
    products = products.masked_fill(~mask, torch.finfo(products.dtype).min)
    weights = torch.softmax(products, -1, dtype=torch.promote_types(products.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), None


# Not compiled: there are calls of as many sizes as there are documents, and each would be compiled anew.
def _is_short(query: Tensor, key: Tensor) -> bool:
    """Return whether plain products are faster than torch's kernel: 16-bit documents of the usual length on a CPU."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.device.type == "cpu" and half and query.shape[2] == key.shape[2] <= SHORT


def _causal_products(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Attend causally by two matrix products, (batch, length, heads, dim); heads that share keys share a product."""
    batch, heads, length, dim = query.shape
    groups = key.shape[1]
    scaled = query * (dim**-0.5 if scaling is None else scaling)
    products = scaled.reshape(batch, groups, -1, dim) @ key.mT
    future = torch.full((length, length), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    # softmax works in fp32 inside; a copy in fp32 would cost more than the products
    weights = torch.softmax(products.view(batch, heads, length, length) + future, -1)
    weights = nn.functional.dropout(weights, dropout, module.training)
    mixed = weights.view(batch, groups, -1, length) @ value
    return mixed.view(batch, heads, length, dim).transpose(1, 2).contiguous()


AttentionInterface.register(PER_DOCUMENT, torch.compiler.disable(attention_per_document))
AttentionMaskInterface.register(PER_DOCUMENT, sdpa_mask)
