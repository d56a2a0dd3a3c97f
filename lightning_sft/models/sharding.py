"""Which parts of a model are shards of their own."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from lightning_sft.errors import UserError
from lightning_sft.head import HeadOutput
from lightning_sft.models.access import find_causal_lm
from lightning_sft.models.reference import FrozenReference
from lightning_sft.models.scorer import TokenScorer

_known_outputs: set[type] = set()


def decoder_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Return the layers of the decoder by name: the modules that transformers itself never splits over devices.

    Raises:
        UserError: the architecture names none.
    """
    names = set(model._no_split_modules or ())
    layers = {name: m for name, m in model.named_modules() if type(m).__name__ in names}
    if not layers:
        raise UserError(
            f"{type(model).__name__} does not say which of its modules are layers (_no_split_modules is "
            f"{sorted(names)}), so it cannot be sharded. Use trainer.strategy: ddp."
        )
    return layers


def shard_fully(scorer: TokenScorer, mesh: DeviceMesh) -> None:
    """Shard parameters, gradients and optimizer states by FSDP2: every decoder layer, and the rest as the root.

    The root is the whole scorer, embeddings, last norm and unembedding included, so that the head, which reads the
    unembedding inside the scorer's forward, finds it whole. A frozen reference is sharded in the same way.

    Args:
        scorer: with its weights, the same on every rank.
        mesh: one dimension, over ranks that see different rows.
    """
    frozen = [scorer.reference.model] if isinstance(scorer.reference, FrozenReference) else []
    for model in [scorer.causal_lm, *map(find_causal_lm, frozen)]:
        for layer in decoder_layers(model).values():
            fully_shard(layer, mesh=mesh)
    # Without this FSDP2 finds no tensor in the root's output, and the root's gradients may never be reduced.
    if HeadOutput not in _known_outputs:
        torch.export.register_dataclass(HeadOutput)
        _known_outputs.add(HeadOutput)
    fully_shard(scorer, mesh=mesh)


def wrap_layers(scorer: TokenScorer) -> None:
    """Wrap every decoder layer by what the context says (FSDP1); the rest belongs to the root.

    Must run where Lightning runs ``configure_model``, inside the strategy's wrapping context.
    """
    from torch.distributed.fsdp.wrap import wrap

    model = scorer.causal_lm
    for name, layer in decoder_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, wrap(layer))
