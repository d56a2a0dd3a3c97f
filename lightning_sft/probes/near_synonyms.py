"""Whether two tokens are near-synonyms: by WordNet, where it is there, else by their embedding rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft.models.access import input_embeddings
from lightning_sft.probes.forward import layer_rows
from lightning_sft.probes.wordnet import are_synonyms, find_wordnet


@torch.no_grad()
def embedding_overlap(model: PreTrainedModel, one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of the input embedding rows of tokens, pair by pair, (pairs,), fp32.

    Under FSDP2 all ranks must call this, inside `within_shards`.

    Args:
        model: the language model.
        one: token ids, (pairs,), int64.
        other: token ids, (pairs,), int64.
    """
    layer, weight = model.get_input_embeddings(), input_embeddings(model)
    if isinstance(weight, DTensor):
        every = layer_rows(layer)
        rows = [every[ids.to(every.device)].float() for ids in (one, other)]
    else:
        rows = [layer(ids.to(weight.device)[None])[0].float() for ids in (one, other)]  # called: an adapter counts
    return cosine_similarity(rows[0], rows[1], dim=-1)


def near_synonyms(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    one: Tensor,
    other: Tensor,
    min_overlap: float = 0.5,
    wordnet: str = "auto",
) -> Tensor:
    """Return which pairs of tokens are near-synonyms, (pairs,), bool, on the CPU.

    A special token, such as the end of an answer, is no word and a near-synonym of nothing. Neither is a token without
    letters: digits and signs have close embedding rows, and WordNet has *2* beside *two*.

    Args:
        model: the language model.
        tokenizer: knows special tokens and what is written; None goes by the embeddings alone.
        one: token ids, (pairs,), int64.
        other: token ids, (pairs,), int64.
        min_overlap: least cosine of two near-synonyms' embedding rows.
        wordnet: folder of WordNet's database; ``"auto"``: where it is installed; ``"none"``: go by the embeddings.
    """
    folder = {"auto": find_wordnet(), "none": None}.get(wordnet, Path(wordnet))
    close = embedding_overlap(model, one, other).cpu() >= min_overlap
    if tokenizer is None:
        return close
    words = [[str(tokenizer.decode([i])).strip() for i in ids.tolist()] for ids in (one, other)]
    special = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.int64)
    is_word = [any(map(str.isalpha, a)) and any(map(str.isalpha, b)) for a, b in zip(*words, strict=True)]
    both = torch.tensor(is_word, dtype=torch.bool) & ~torch.isin(one.cpu(), special) & ~torch.isin(other.cpu(), special)
    if folder is None:
        return both & close
    return both & torch.tensor([are_synonyms(a, b, folder) for a, b in zip(*words, strict=True)], dtype=torch.bool)
