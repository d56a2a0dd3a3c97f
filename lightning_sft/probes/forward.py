"""One forward pass for all probes: logits and hidden states at the answer positions, and whole embedding matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightning_sft.errors import UserError
from lightning_sft.head.reference import plain_logits
from lightning_sft.head.types import Unembedding
from lightning_sft.models.access import input_embeddings, unembedding, vocabulary_size
from lightning_sft.probes.encode import EncodedProbes

BLOCK = 8192  # rows of a layer without a plain weight that are computed at a time


@dataclass(frozen=True)
class ProbeReading:
    """Logits and hidden states at the answer positions.

    Attributes:
        logits: (probes, vocab), fp32 (float64 for a float64 model).
        hidden: the hidden states that the output embeddings turn into the logits, (probes, dim), in the model's dtype.
        plain: whether the logits are ``unembedding(hidden)``, so that they can be computed anew from other rows.
    """

    logits: Tensor
    hidden: Tensor
    plain: bool


@torch.no_grad()
def read_probes(model: PreTrainedModel, encoded: EncodedProbes, *, plain: bool | None = None) -> ProbeReading:
    """Run the model once over all probes, in evaluation mode and in its own precision, and read in fp32.

    Training modes of all submodules and the random state are as before afterwards. Where the model computes its
    logits in lower precision, they are computed again in fp32 from the hidden states, unless they are not plain
    hidden @ W^T (an adapter on the head, say): then the model's own are raised to fp32.

    Args:
        model: the transformers model. Under FSDP2 all ranks must call this, inside `within_shards`.
        encoded: the probes.
        plain: what an earlier reading found for `ProbeReading.plain`; None checks.
    """
    encoded = encoded.to(input_embeddings(model).device)
    _check_ids(model, encoded)
    rows = torch.arange(len(encoded.probes), device=encoded.last.device)
    seen: list[Tensor] = []

    def keep_answers(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0][rows, encoded.last][:, None]
        seen.append(hidden[:, 0])
        return (hidden, *args[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(keep_answers)
    try:
        with evaluation(model):
            output = model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False)
    finally:
        hook.remove()
    own, hidden = output.logits[:, 0], seen[0]
    dtype = torch.promote_types(own.dtype, torch.float32)
    if plain is False or (plain and own.dtype == dtype):
        return ProbeReading(own.to(dtype), hidden, plain)
    try:
        with torch.autocast(own.device.type, enabled=False):
            again = plain_logits(hidden.to(dtype), whole_unembedding(model))
    except UserError:  # an adapter on the head: there is no one matrix
        return ProbeReading(own.to(dtype), hidden, plain=False)
    if plain is None:
        # Rounding of the model's own logits, and of sums over the hidden dimension.
        tolerance = max(4 * torch.finfo(own.dtype).eps, 64 * torch.finfo(dtype).eps) * max(1.0, float(own.abs().max()))
        plain = bool((again - own).abs().max() <= tolerance)
    return ProbeReading(again if plain and own.dtype != dtype else own.to(dtype), hidden, plain)


def _check_ids(model: PreTrainedModel, encoded: EncodedProbes) -> None:
    size = vocabulary_size(model)
    given = {"context": encoded.input_ids.amax(1), "answer": encoded.correct, "competitor": encoded.competitor}
    for of, ids in given.items():
        beyond = (ids >= size).nonzero()[:, 0].tolist()
        if beyond:
            raise UserError(
                f"The {of} of probe {encoded.probes[beyond[0]].name!r} has token id {int(ids[beyond[0]])}, but the ids "
                f"of this model's vocabulary end at {size - 1}. They are those of another tokenizer: make them anew."
            )


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Switch every submodule to evaluation mode, and put modes and random states back afterwards."""
    was_training = [m for m in model.modules() if m.training]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        for module in was_training:
            module.training = False
        try:
            yield
        finally:
            for module in was_training:
                module.training = True


def within_shards(outer: nn.Module, model: nn.Module, body: Callable[[], None]) -> None:
    """Run ``body`` as if inside the forward of every FSDP2 module between ``outer`` and ``model``.

    A module that shards parameters gathers them in its own forward; calling the language model inside it directly
    would find shards. All ranks must call this. Without sharding it is ``body()``.

    Raises:
        UserError: the model is sharded by FSDP1, which keeps no whole matrices.
    """
    if any(isinstance(m, FullyShardedDataParallel) for m in outer.modules()):
        raise UserError(
            "The model is sharded by FSDPStrategy (FSDP1), under which its embeddings cannot be read. Use "
            "ModelParallelStrategy with fully_shard (FSDP2) in configure_model."
        )
    call = body
    for module in reversed(_path(outer, model)[:-1]):
        if isinstance(module, FSDPModule):
            call = _as_forward(module, call)
    try:
        with torch.no_grad():
            call()
    finally:
        for module in outer.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def _as_forward(module: nn.Module, body: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        vars(module)["_within_shards"] = body
        try:
            register_fsdp_forward_method(module, "_within_shards")
            vars(module)["_within_shards"]()
        finally:
            del vars(module)["_within_shards"]

    return call


def _path(outer: nn.Module, inner: nn.Module) -> list[nn.Module]:
    """Return the modules from ``outer`` down to ``inner``, both included."""
    if outer is inner:
        return [outer]
    for child in outer.children():
        below = _path(child, inner)
        if below:
            return [outer, *below]
    return []


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its rows: gathered over the ranks if it is a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_plain(layer: nn.Module) -> bool:
    """Return whether a layer works by its ``weight`` alone: no adapter, no wrapper, no scale."""
    return type(layer).forward in (nn.Embedding.forward, nn.Linear.forward)


@torch.no_grad()
def layer_rows(layer: nn.Module) -> Tensor:
    """Return the rows by which an embedding or output layer really works, (vocab, dim), adapters included.

    Args:
        layer: an ``nn.Embedding`` or ``nn.Linear``, or something that wraps one (an adapter of peft, a trained copy).
    """
    if is_plain(layer):
        return whole(layer.weight).detach()  # type: ignore[arg-type]
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(weight, DTensor):
        raise UserError(
            f"The embedding layer is a {type(layer).__name__} and sharded, so its rows cannot be read. Leave the "
            "embeddings out of the adapter (target_modules, modules_to_save), or do not shard."
        )
    vocab, dim = weight.shape
    if isinstance(getattr(layer, "base_layer", getattr(layer, "original_module", layer)), nn.Embedding):
        ids = torch.arange(vocab, device=weight.device)
        with evaluation(layer):
            return torch.cat([layer(part) for part in ids.split(BLOCK)])
    with evaluation(layer):
        units = torch.eye(dim, dtype=weight.dtype, device=weight.device)
        columns: Tensor = layer(units) - layer(torch.zeros_like(units[:1]))  # without the bias
        return columns.T.contiguous()


def whole_unembedding(model: PreTrainedModel, weight: Tensor | None = None) -> Unembedding:
    """Return how hidden states become logits, with whole matrices in at least fp32; ``weight`` replaces the rows."""
    found = unembedding(model)
    rows = whole(found.weight).detach() if weight is None else weight
    dtype = torch.promote_types(rows.dtype, torch.float32)
    bias = None if found.bias is None else whole(found.bias).detach().to(dtype)
    return Unembedding(rows.to(dtype), bias, found.scale, found.softcap)
