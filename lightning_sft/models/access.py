"""One small accessor: where a causal language model keeps its parts, whoever wrapped it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft.errors import UserError
from lightning_sft.head.types import Unembedding


class SearchBarrier:
    """Marks a module whose models are not the one that a search for *the* model is for, such as a teacher."""


def find_causal_lm(module: nn.Module) -> PreTrainedModel:
    """Return the Hugging Face causal language model inside any module, such as a stranger's LightningModule.

    Adapters of peft and wrappers (DDP, compile) are looked through; what comes back is the transformers model with
    its output embeddings.

    Raises:
        UserError: there is none, or more than one.
    """
    found = [m for m in outermost_models(module) if m.get_output_embeddings() is not None]
    if len(found) == 1:
        return found[0]
    what = "no Hugging Face model with output embeddings" if not found else f"{len(found)} Hugging Face models"
    raise UserError(
        f"{type(module).__name__} holds {what}; exactly one is needed. Pass the model explicitly, for example "
        "`model=module.student`."
    )


def outermost_models(module: nn.Module) -> Iterator[PreTrainedModel]:
    """Yield the transformers models in ``module`` that are not inside another one."""
    if isinstance(module, PreTrainedModel):
        yield module
        return
    for child in module.children():
        if not isinstance(child, SearchBarrier):
            yield from outermost_models(child)


def find_tokenizer(module: nn.Module) -> PreTrainedTokenizerBase:
    """Return the tokenizer that a LightningModule or its data module carries as ``tokenizer``.

    Raises:
        UserError: neither has one.
    """
    trainer = getattr(module, "_trainer", None) or getattr(module, "_fabric", None)
    for owner in (module, getattr(trainer, "datamodule", None)):
        tokenizer = getattr(owner, "tokenizer", None)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            return tokenizer
    raise UserError(
        f"{type(module).__name__} has no attribute `tokenizer`, and neither has its data module. Give it one, or pass "
        "`tokenizer=` explicitly."
    )


def backbone(model: PreTrainedModel) -> nn.Module:
    """Return the decoder whose ``last_hidden_state`` feeds the output embeddings."""
    base = model.base_model
    if base is model:  # the prefix that the class names is not where its decoder is, as in Llama 4
        inner = [child for child in model.children() if isinstance(child, PreTrainedModel)]
        if len(inner) == 1:
            return inner[0]
        raise UserError(
            f"{type(model).__name__} does not keep its decoder apart from its head (base_model_prefix "
            f"{model.base_model_prefix!r}). Use head: reference."
        )
    return base


def text_config(model: PreTrainedModel) -> object:
    """Return the configuration of the language part."""
    return model.config.get_text_config(decoder=True)


def unembedding(model: PreTrainedModel) -> Unembedding:
    """Return how ``model`` turns hidden states into logits, as far as its configuration says.

    Whether this is the whole truth is checked once at start against the model's own logits.
    """
    layer = model.get_output_embeddings()
    if hasattr(layer, "base_layer"):
        raise UserError(
            f"the adapter on its output embeddings ({type(layer).__name__}) is no plain matrix; leave the output "
            "embeddings out of target_modules, as target_modules: all-linear does."
        )
    config = text_config(model)
    factor, divisor = (getattr(config, name, None) or 1.0 for name in ("logit_scale", "logits_scaling"))
    if isinstance(factor, str) or isinstance(divisor, str):
        raise UserError(f"its configuration names the scale of its logits in words ({factor!r}, {divisor!r}).")
    scale = float(factor) / float(divisor)
    return Unembedding(
        weight=layer.weight,
        bias=getattr(layer, "bias", None),
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def require_accessors(model: PreTrainedModel, name: str) -> None:
    """Raise unless a model tells where its embeddings are, as every class of transformers does.

    Args:
        model: perhaps of a class that a repository brought along.
        name: of the model, for the message.

    Raises:
        UserError: says which method must return what.
    """
    for accessor in ("get_input_embeddings", "get_output_embeddings"):
        try:
            layer = getattr(model, accessor)()
        except Exception as error:  # the class may be anyone's
            layer = f"{type(error).__name__}: {error}"
        weight = getattr(layer, "weight", None)
        if isinstance(layer, nn.Module) and isinstance(weight, torch.Tensor) and weight.ndim == 2:
            continue
        got = layer if isinstance(layer, str | None) else type(layer).__name__
        raise UserError(
            f"{type(model).__name__} of {name!r} does not say where its embeddings are: {accessor}() must return one "
            f"module with a weight of (vocabulary, dim), and returned {got}. Define it in the model's class; of "
            "several heads, return the one that predicts the next token."
        )


def vocabulary_size(model: PreTrainedModel) -> int:
    """Return the number of rows of the output embeddings, which may exceed the tokenizer's length."""
    return int(model.get_output_embeddings().weight.shape[0])


def input_embeddings(model: PreTrainedModel) -> torch.Tensor:
    """Return the input embedding matrix, (vocab, dim)."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight
