"""Layers split over ranks that share their rows: Megatron's columns and rows (Shoeybi et al., arXiv 1909.08053)."""

from __future__ import annotations

from typing import Any

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PreTrainedModel

from lightning_sft.errors import UserError
from lightning_sft.models.access import backbone, text_config


def split_layers(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Split the layers of a decoder over the ranks of a mesh, by the plan that its configuration brings along.

    Attention heads and inner features are split; embeddings, the norms between layers and the unembedding stay whole
    on every rank, so that the head sees whole hidden states.

    Args:
        model: with its weights, the same on every rank.
        mesh: one dimension, over ranks that see the same rows.

    Raises:
        UserError: the architecture has no such plan, or its sizes cannot be divided by the number of ranks.
    """
    config: Any = text_config(model)
    plan: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    unknown = {style for style in plan.values() if style not in _STYLES}
    if not plan or unknown:
        what = f"uses {sorted(unknown)}" if unknown else "names none"
        raise UserError(
            f"tensor_parallel_size is {mesh.size()}, but {type(model).__name__} cannot be split: the plan of its "
            f"configuration (base_model_tp_plan) {what}; known are {sorted(_STYLES)}. Set tensor_parallel_size: 1, and "
            "data_parallel_size to the number of ranks."
        )
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(config, name, None)
        if size is not None and size % mesh.size():
            raise UserError(
                f"tensor_parallel_size is {mesh.size()}, which does not divide {name} = {size} of "
                f"{type(model).__name__}. Set it to a number that does, or to 1."
            )
    parallelize_module(backbone(model), mesh, {name: _STYLES[style]() for name, style in plan.items()})


def _norm_of_heads() -> ParallelStyle:
    """Return the style of a norm whose input, (batch, length, heads, dim), holds this rank's heads alone."""
    return SequenceParallel(sequence_dim=2, use_local_output=True)


_STYLES: dict[str, Any] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "replicated_with_grad_allreduce": _norm_of_heads,
}
