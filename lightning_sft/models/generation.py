"""Greedy or sampled answers from a causal language model, batched, with left padding."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria
from typing_extensions import override

from lightning_sft.errors import UserError
from lightning_sft.models.mode import eval_mode
from lightning_sft.models.positions import row_limit
from lightning_sft.models.small_copy import WINDOW, CopyFailed, small_copy, token_ids, undisturbed
from lightning_sft.training.signals import stop_in_generation

#: what was found out about a model
_known: weakref.WeakKeyDictionary[PreTrainedModel, Answering] = weakref.WeakKeyDictionary()
_SAME = 1e-3  # of the largest score: what rounding moves in fp32 is a hundredth of it, and what leaks more than 0.01


class _StopOnSignal(StoppingCriteria):
    """Asks after each token whether a signal has asked the run to end."""

    @override
    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        stop_in_generation()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


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

    Prompts of like length are generated together, unless answers would depend on it: some architectures do not leave
    padding on the left out, which is found out on a small copy at the first call. The model is in eval mode meanwhile
    and no random number is drawn, so training goes on as if nothing had happened.

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
    longest = max(map(len, prompts), default=0)
    limit = row_limit(model, longest + max_new_tokens)
    last = None if limit is None or not limit.is_hard else limit.tokens
    if last is not None and longest >= last:
        raise UserError(
            f"A prompt has {longest} tokens, but {type(model).__name__} has {last} positions, which must hold the "
            "answer, too. Shorten the prompts, for example with data.max_length."
        )
    way = _answering(model)
    if len(set(map(len, prompts))) > 1 and not way.together:
        batch_size = 1
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
                max_new_tokens=max_new_tokens if last is None else min(max_new_tokens, last - ids.shape[1]),
                do_sample=False,
                use_cache=way.cached,
                eos_token_id=end_tokens(model, tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                synced_gpus=synced_gpus,
                stopping_criteria=[] if synced_gpus else [_StopOnSignal()],
            )
            texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
            answers.update(zip(chosen, texts, strict=True))
    return [answers[i] for i in range(len(prompts))]


@dataclass(frozen=True)
class Answering:
    """How a model can answer prompts.

    Attributes:
        together: prompts of other lengths in the batch change nothing in a prompt's answer.
        cached: keys and values of earlier tokens can be kept; else each token costs a pass over the whole row.
    """

    together: bool
    cached: bool


def _answering(model: PreTrainedModel) -> Answering:
    """Return how a model can answer; find it out and say what is unusual at the first call for it."""
    if model not in _known:
        found = _known[model] = find_answering(model)
        who = f"{type(model).__name__} (model_type {model.config.model_type!r})"
        if not found.together:
            warnings.warn(
                f"{who} answers otherwise when prompts of other lengths share its batch, as it does not leave padding "
                "out. Prompts are answered one at a time, which is right and slower.",
                stacklevel=3,
            )
        if not found.cached:
            warnings.warn(
                f"{who} fails on prompts longer than its window while it keeps earlier keys and values. It answers "
                "without keeping them, which is right and slower.",
                stacklevel=3,
            )
    return _known[model]


def find_answering(model: PreTrainedModel) -> Answering:
    """Compare the scores of the first answered tokens of a prompt alone and beside a longer one, on a small copy."""
    try:
        copy: Any = small_copy(model)
    except CopyFailed:
        return Answering(together=False, cached=True)  # one at a time is right for every model
    short, long = token_ids(copy, WINDOW - 3), token_ids(copy, 2 * WINDOW + 3, seed=1)
    padded = torch.stack([torch.cat([short.new_zeros(len(long) - len(short)), short]), long])
    mask = torch.ones_like(padded)
    mask[0, : len(long) - len(short)] = 0
    alone, cached = _scores(copy, short[None]), True
    if alone is not None and _scores(copy, long[None]) is None:
        cached, alone = False, _scores(copy, short[None], cached=False)
    if alone is None:
        return Answering(together=True, cached=True)  # no prompt at all runs: the call itself says why
    beside = _scores(copy, padded, mask, cached=cached)
    same = beside is not None and bool((alone - beside).abs().max() <= _SAME * alone.abs().max())
    return Answering(together=same, cached=cached)


def _scores(copy: Any, ids: Tensor, mask: Tensor | None = None, *, cached: bool = True) -> Tensor | None:
    """Return the scores of the first prompt's three next tokens, (3, vocab), or None if the copy's code fails."""
    settings = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "use_cache": cached, "pad_token_id": 0}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    try:
        with undisturbed(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            attended = torch.ones_like(ids) if mask is None else mask
            output = copy.generate(input_ids=ids, attention_mask=attended, **settings)
    except Exception:  # whatever an architecture's code raises
        return None
    return torch.stack(output.logits)[:, 0]


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
