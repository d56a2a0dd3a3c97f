"""Settings of a model that FSDP2 cannot work with."""

from __future__ import annotations

from lightning_sft.errors import UserError
from lightning_sft.models.build import ModelSettings


def refuse_under_fsdp2(settings: ModelSettings, tensor: int, ranks: int) -> None:
    """Raise for settings of a model that cannot be sharded.

    Args:
        settings: of the model.
        tensor: ranks that share out each layer.
        ranks: all of them.

    Raises:
        UserError: says what to use.
    """
    if tensor > 1 and settings.has_adapter:
        raise UserError(
            f"An adapter was given with tensor_parallel_size {tensor}: the layers that it works in are split over "
            f"ranks, and peft's weights are not. Set data_parallel_size: {ranks} and "
            "tensor_parallel_size: 1, as configs/strategy/fsdp2.yaml does."
        )
    if getattr(settings.adapter_config, "trainable_token_indices", None):
        raise UserError(
            "The adapter has trainable_token_indices under FSDP2, where peft would write single rows into a sharded "
            "matrix. Train whole embeddings with modules_to_save: [embed_tokens, lm_head] (the names in your model; "
            "with ensure_weight_tying: true where they are tied), or use trainer.strategy: ddp."
        )
    if settings.quantization is not None:
        raise UserError(
            f"quantization is {settings.quantization!r} under FSDP2, which cannot shard quantised weights here. "
            "Use trainer.strategy: ddp, or set quantization: null."
        )
    if settings.torch_compile:
        raise UserError(
            "torch_compile does not go with FSDP2 here: the shards are gathered by hooks that break the graph. "
            "Set torch_compile: false, or use trainer.strategy: ddp."
        )
