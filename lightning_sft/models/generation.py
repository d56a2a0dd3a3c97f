"""Greedy or sampled answers from a causal language model, batched, with left padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft.errors import UserError
from lightning_sft.models.access import position_limit
from lightning_sft.models.mode import eval_mode


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 128,
    batch_size: int = 32,
    synced_gpus: bool = False,
) -> list[str]:
    """Return the greedy answer to every prompt, in order, without special tokens.

    Prompts of like length are generated together. The model is in eval mode meanwhile and no random number is drawn,
    so training goes on as if nothing had happened.

    Args:
        model: a transformers causal LM, perhaps with adapters inside.
        tokenizer: its tokenizer; generation stops at its end token and at those of the model's generation config.
        prompts: token ids of each prompt, templated up to where the answer starts.
        max_new_tokens: longest answer.
        batch_size: prompts generated at once.
        synced_gpus: keep all ranks generating until the slowest is done (sharded models need it).

    Raises:
        UserError: a prompt leaves no position for an answer.
    """
    limit = position_limit(model)
    if limit is not None and max(map(len, prompts), default=0) >= limit:
        raise UserError(
            f"A prompt has {max(map(len, prompts))} tokens, but {type(model).__name__} has {limit} positions, which "
            "must hold the answer, too. Shorten the prompts, for example with data.max_length."
        )
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: dict[int, str] = {}
    generator: Any = model  # transformers types `generate` as a tensor
    with eval_mode(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask = _left_padded([prompts[i] for i in chosen], tokenizer, model.device)
            output = generator.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens if limit is None else min(max_new_tokens, limit - ids.shape[1]),
                do_sample=False,
                use_cache=True,
                eos_token_id=end_tokens(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                synced_gpus=synced_gpus,
            )
            texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            answers.update(zip(chosen, texts, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _left_padded(
    prompts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[Tensor, Tensor]:
    length = max(map(len, prompts))
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (length - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens that end an answer: those of the generation config and the tokenizer's."""
    of_model = model.generation_config.eos_token_id if model.generation_config is not None else None
    many = of_model if isinstance(of_model, list) else [of_model]
    return sorted({i for i in [*many, tokenizer.eos_token_id] if i is not None})
