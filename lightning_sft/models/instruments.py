"""The one rule by which every instrument finds its model and tokenizer, and refuses what it would misread."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from lightning_sft.errors import UserError
from lightning_sft.models.access import find_causal_lm, find_tokenizer, outermost_models
from lightning_sft.models.mode import eval_mode

#: fields of a configuration that make a decoder of an encoder: BERT's, and XLM's
_DECODER_FIELDS = ("is_decoder", "causal")
#: positions at which a plain embedding gives one token the same vector; longer than most soft prompts
_POSITIONS = 128


def model_to_read(module: nn.Module, given: nn.Module | None = None) -> PreTrainedModel:
    """Return the decoder that an instrument reads.

    Adapters that act inside modules and wrappers are looked through. Encoders beside one decoder are passed over.

    Args:
        module: the LightningModule, or whatever holds the model.
        given: what the user has named as the model's place; None looks in ``module``.

    Raises:
        UserError: no or several decoders; a model that reads in both directions or has an encoder, whose logits at a
            position are no prediction of the next token; a soft prompt, which a forward pass of the model alone would
            leave out.
    """
    place = module if given is None else given
    found = [m for m in outermost_models(place) if m.get_output_embeddings() is not None]
    decoders = [m for m in found if _why_no_decoder(m) is None]
    if found and not decoders:
        raise UserError(
            f"{type(found[0]).__name__} {_why_no_decoder(found[0])}. This instrument reads what a model predicts after "
            "a context. Allowed: causal language models, such as Llama, Qwen or GPT-2."
        )
    model = decoders[0] if len(decoders) == 1 else find_causal_lm(place)
    for holder in {id(m): m for m in (module, place)}.values():
        _refuse_prompt_learning(holder)
    _refuse_soft_embeddings(model)
    return model


def tokenizer_to_use(module: nn.Module, given: PreTrainedTokenizerBase | None = None) -> PreTrainedTokenizerBase:
    """Return the given tokenizer, or the one that the LightningModule or its data module carries."""
    return find_tokenizer(module) if given is None else given


def _why_no_decoder(model: PreTrainedModel) -> str | None:
    config = model.config
    if getattr(config, "is_encoder_decoder", False):
        return "has an encoder that reads the whole text first"
    made_decoder = any(getattr(config, field, False) for field in _DECODER_FIELDS)
    if not model.can_generate() or (config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not made_decoder):
        return "is no decoder: each of its positions reads the whole text"
    return None


def _refuse_prompt_learning(holder: nn.Module) -> None:
    for module in holder.modules():
        configs = getattr(module, "peft_config", None)
        for config in configs.values() if isinstance(configs, dict) else ():
            if getattr(config, "is_prompt_learning", False):
                raise UserError(
                    f"The adapter {type(config).__name__} acts on the prompt, not inside modules, so the model would "
                    "be read without it. Use an adapter such as LoRA."
                )


@torch.no_grad()
def _refuse_soft_embeddings(model: PreTrainedModel) -> None:
    """Raise if the input embeddings do more than to look tokens up: a soft prompt written into the model."""
    layer = model.get_input_embeddings()
    tensors = [*layer.parameters(), *layer.buffers()]
    if type(layer) is nn.Embedding or not tensors or any(isinstance(t, DTensor) or t.is_meta for t in tensors):
        return
    ids = torch.zeros(1, _POSITIONS, dtype=torch.int64, device=tensors[0].device)
    with eval_mode(layer):
        vectors = layer(ids)
    alike = isinstance(vectors, Tensor) and vectors.shape[:2] == ids.shape and bool((vectors == vectors[:, :1]).all())
    if not alike:
        raise UserError(
            f"The input embeddings of {type(model).__name__} ({type(layer).__name__}) do not turn each token into a "
            "vector of its own: a soft prompt stands in front of the tokens or in their place, and a probe's context "
            "would be cut by it. Use an adapter that acts inside modules, such as peft.LoraConfig."
        )
