"""How an architecture can answer prompts: beside others of another length, and with earlier keys and values kept."""

from __future__ import annotations

import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_sft.models.small_copy import WINDOW, CopyFailed, small_copy, token_ids, undisturbed

#: what was found out about a model
_known: weakref.WeakKeyDictionary[PreTrainedModel, Answering] = weakref.WeakKeyDictionary()
_SAME = 1e-3  # of the largest score: what rounding moves in fp32 is a hundredth of it, and what leaks more than 0.01


@dataclass(frozen=True)
class Answering:
    """How a model can answer prompts.

    Attributes:
        together: prompts of other lengths in the batch change nothing in a prompt's answer.
        cached: keys and values of earlier tokens can be kept; else each token costs a pass over the whole row.
    """

    together: bool
    cached: bool


def answering(model: PreTrainedModel) -> Answering:
    """Return how a model can answer; find it out and say what is unusual at the first call for it."""
    if model not in _known:
        found = _known[model] = find_answering(model)
        who = f"{type(model).__name__} (model_type {model.config.model_type!r})"
        if not found.together:
            warnings.warn(
                f"{who} answers otherwise when prompts of other lengths share its batch, as it does not leave padding "
                "out. Prompts are answered one at a time, which is right and slower.",
                stacklevel=4,
            )
        if not found.cached:
            warnings.warn(
                f"{who} fails on prompts longer than its window while it keeps earlier keys and values. It answers "
                "without keeping them, which is right and slower.",
                stacklevel=4,
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
