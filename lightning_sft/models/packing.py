"""Several documents in one sequence: what the decoder gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_sft.errors import UserError
from lightning_sft.models.access import text_config
from lightning_sft.models.attention import PER_DOCUMENT, attention_of_parts, document_sizes
from lightning_sft.models.router import asks_for_router_loss
from lightning_sft.scores import IGNORED

#: Architectures (``model_type``) whose packed and unpacked losses and gradients are equal in the tests, under every
#: attention implementation that runs on a CPU. Others train with dense masks if
#: they pass the proof at the start.
PROVEN = (
    "arcee",
    "cohere",
    "cohere2",
    "exaone4",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt2",
    "gpt_neox",
    "granite",
    "helium",
    "hunyuan_v1_dense",
    "llama",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "persimmon",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
)


def is_packed(batch: Mapping[str, Tensor]) -> bool:
    """Return whether the rows of a batch hold documents behind each other."""
    return "position_ids" in batch and "attention_mask" not in batch


def attended(batch: Mapping[str, Tensor]) -> Tensor:
    """Return which positions of a batch hold a token of a document, (batch, length), bool."""
    return batch["row"] >= 0 if is_packed(batch) else batch["attention_mask"] != 0


def is_flat(batch: Mapping[str, Any]) -> bool:
    """Return whether a batch is one sequence that brings the boundaries of its documents along."""
    return "cu_seq_lens" in batch


def supervised(batch: Mapping[str, Any]) -> Tensor:
    """Return the positions whose hidden states predict a label, (tokens,), counted over the whole batch.

    The label stands one position further. A flat batch brings them along, so that nothing is read from the device.
    """
    if "supervised" in batch:
        index: Tensor = batch["supervised"]
        return index
    trained = batch["labels"] != IGNORED
    trained[:, 0] = False  # nothing stands before it
    return torch.nonzero(trained.flatten())[:, 0] - 1


def document_lengths(batch: Mapping[str, Any]) -> Tensor | None:
    """Return the tokens of each position's own document, (batch, length, 1); None for padded rows."""
    if not is_packed(batch):
        return None
    positions: Tensor = batch["position_ids"]
    if is_flat(batch):
        sizes = batch["cu_seq_lens"].diff()
        return torch.repeat_interleave(sizes, sizes, output_size=positions.shape[1])[None, :, None]
    number = documents(positions)
    return torch.bincount(number.flatten())[number][..., None]


def documents(position_ids: Tensor) -> Tensor:
    """Number the documents of a packed batch.

    Args:
        position_ids: (batch, length), beginning at 0 in each document.

    Returns:
        (batch, length), int64, counted over the whole batch.
    """
    return ((position_ids == 0).flatten().cumsum(0) - 1).view_as(position_ids)


def per_document(model: PreTrainedModel) -> bool:
    """Return whether the model's attention wants one long row: each document in a call of its own, or flash."""
    name = str(model.config._attn_implementation)
    return name == PER_DOCUMENT or "flash" in name


def attends_by_document(model: PreTrainedModel) -> bool:
    """Return whether the work of the model's attention grows with documents and not with the whole row."""
    return per_document(model) or "flex" in str(model.config._attn_implementation)


def masks_everything(model: PreTrainedModel) -> str:
    """Return why a model that keeps documents apart by masks should not get them in one row."""
    return (
        f"the attention of {type(model).__name__} ({model.config._attn_implementation!r}) masks every position against "
        "every other, which costs more than padding does"
    )


def flattened(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a packed batch as one row, (1, batch * length); a flat one is that already."""
    return batch if is_flat(batch) else {name: value.reshape(1, -1) for name, value in batch.items()}


def decoder_inputs(model: PreTrainedModel, batch: Mapping[str, Any], with_boundaries: bool = False) -> dict[str, Any]:
    """Return what the decoder is called with.

    Without ``attention_mask``, transformers makes masks (or, for flash attention, boundaries) from ``position_ids``.

    Args:
        model: the causal language model.
        batch: see `TokenScorer.forward`.
        with_boundaries: add `boundaries`, for layers that know of documents by them alone; the batch is one row.
    """
    inputs: dict[str, Any] = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in batch}
    if not is_packed(batch):
        return {**inputs, "use_cache": False}
    if model.config._attn_implementation == PER_DOCUMENT:
        sizes = batch["cu_seq_lens"].diff().long() if is_flat(batch) else document_sizes(batch["position_ids"])
        inputs["attention_mask"] = sizes[None, None, None]
    if with_boundaries:
        inputs["seq_idx"] = documents(batch["position_ids"]).to(torch.int32)
    by_kernel = per_document(model) and (
        batch["input_ids"].is_cuda or model.config._attn_implementation != PER_DOCUMENT
    )
    if with_boundaries or (is_flat(batch) and by_kernel):
        inputs |= boundaries(batch)
    return {**inputs, "use_cache": False}


def choose_attention(model: PreTrainedModel, asked: str | None) -> None:
    """Set the attention of a model that is to see packed rows: in a call for each document, where that is proven.

    Masks of everything against everything cost a multiple of that on a CPU.

    Args:
        model: as it was loaded.
        asked: the implementation that was asked for; None leaves the choice.

    Raises:
        UserError: calls for each document are asked for, and nothing is known about the architecture, or it is to
            balance its experts, for which transformers needs a usual mask.
    """
    name = getattr(text_config(model), "model_type", "")
    balances = asks_for_router_loss(model)
    if asked == PER_DOCUMENT and balances:
        raise UserError(
            f"attn_implementation is {PER_DOCUMENT!r} with output_router_logits: true, whose load-balancing loss reads "
            "the mask that documents in calls of their own do not have. Leave attn_implementation out, or set sdpa."
        )
    if asked is None and name in PROVEN and not balances:
        where = (model.config, text_config(model))
        model.set_attn_implementation(
            attention_of_parts(model.config, lambda part, own: PER_DOCUMENT if any(part is w for w in where) else own)
        )
    if asked == PER_DOCUMENT and name not in PROVEN:
        raise UserError(
            f"attn_implementation is {PER_DOCUMENT!r}, which is proven for {', '.join(PROVEN)}, and not for {name!r}. "
            "Leave attn_implementation out, or set sdpa or eager."
        )


def boundaries(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return where documents begin and end, as kernels of attention, recurrent and convolution layers take it.

    Args:
        batch: one row; a flat one brings its boundaries along, others are read back from the device.

    Returns:
        ``cu_seq_lens_q`` and ``_k``, (documents + 1,), int32; and the longest document as ``max_length_q`` and ``_k``.
    """
    if is_flat(batch):
        ends, longest = batch["cu_seq_lens"], batch["max_length"]
    else:
        sizes = document_sizes(batch["position_ids"])
        ends = nn.functional.pad(sizes.cumsum(0), (1, 0)).to(torch.int32).to(batch["position_ids"].device)
        longest = int(sizes.max())
    return {
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }
