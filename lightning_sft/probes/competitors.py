"""Competitors that the model names: the strongest wrong candidate before training, or the nearest of the strongest."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_sft.probes.encode import UNKNOWN, EncodedProbes
from lightning_sft.probes.near_synonyms import embedding_overlap
from lightning_sft.probes.probe import Probe

#: how many of the strongest wrong candidates the nearest is looked for among
STRONGEST = 20


def lacks_competitors(encoded: EncodedProbes) -> bool:
    """Return whether a model must name some of the competitors."""
    return bool((encoded.competitor == UNKNOWN).any())


@torch.no_grad()
def name_competitors(
    encoded: EncodedProbes, logits: Tensor, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
) -> EncodedProbes:
    """Return the probes with every competitor known.

    ``"auto"`` is the strongest candidate beside the answer, the lowest id of several that are equally strong;
    ``"nearest"`` that of the 20 strongest whose input embedding row has the largest cosine with the answer's.

    Args:
        encoded: the probes.
        logits: what the model says before training, (probes, vocab).
        model: the model; under FSDP2 its embeddings are gathered, and all ranks are here.
        tokenizer: makes the competitors' texts; None leaves the probe's words.
    """
    others = logits.scatter(1, encoded.correct[:, None], float("-inf"))
    found = encoded.competitor.clone()
    for i in (encoded.competitor == UNKNOWN).nonzero()[:, 0].tolist():
        if encoded.probes[i].competitor == "nearest":
            strongest = others[i].topk(min(STRONGEST, others.shape[1] - 1)).indices
            overlap = embedding_overlap(model, encoded.correct[i].expand_as(strongest), strongest)
            found[i] = strongest[overlap.argmax()]
        else:
            found[i] = others[i].argmax()
    return with_competitors(encoded, found.tolist(), tokenizer)


def with_competitors(
    encoded: EncodedProbes, ids: list[int], tokenizer: PreTrainedTokenizerBase | None = None
) -> EncodedProbes:
    """Return the probes with these competitors, one id a probe, where they have none of their own."""
    probes = tuple(
        _named(probe, new, tokenizer) if old == UNKNOWN else probe
        for probe, old, new in zip(encoded.probes, encoded.competitor.tolist(), ids, strict=True)
    )
    known = torch.where(encoded.competitor == UNKNOWN, torch.tensor(ids).to(encoded.competitor), encoded.competitor)
    return replace(encoded, probes=probes, competitor=known)


def _named(probe: Probe, competitor: int, tokenizer: PreTrainedTokenizerBase | None) -> Probe:
    text = probe.competitor if tokenizer is None else str(tokenizer.decode([competitor])).strip()
    return replace(probe, competitor=text, competitor_id=competitor)
