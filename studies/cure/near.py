"""Makes ``pairs.json`` anew from the adapted checkpoint: ``python -m studies.cure.near CHECKPOINT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_sft.models.access import backbone
from studies.cure.texts import PAIRS, choose_pairs


def last_logits(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Return the logits behind each text, (texts, vocabulary), float32."""
    begun = [tokenizer(text).input_ids for text in texts]
    longest = max(map(len, begun))
    device = model.get_output_embeddings().weight.device
    ids = torch.tensor([[*own, *[0] * (longest - len(own))] for own in begun], device=device)
    lengths = torch.tensor([len(own) for own in begun], device=device)
    mask = (torch.arange(longest, device=device) < lengths[:, None]).long()
    hidden = backbone(model)(input_ids=ids, attention_mask=mask).last_hidden_state
    # the logits of one position alone: those of the others are much of the work
    logits: Tensor = model.get_output_embeddings()(hidden[torch.arange(len(texts)), lengths - 1])
    return logits.float()


def token_of(tokenizer: Any, word: str) -> int:
    """Return the token of a word with a space in front; a longer word has none: -1."""
    ids = tokenizer(f" {word}", add_special_tokens=False).input_ids
    return int(ids[0]) if len(ids) == 1 else -1


@torch.no_grad()
def main(checkpoint: str) -> None:
    """Write ``pairs.json``.

    Args:
        checkpoint: folder of the adapted checkpoint.
    """
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def mean_gap(correct: str, competitor: str, texts: list[str]) -> float:
        logits = last_logits(model, tokenizer, texts)
        return float((logits[:, token_of(tokenizer, correct)] - logits[:, token_of(tokenizer, competitor)]).mean())

    found = choose_pairs(lambda word: token_of(tokenizer, word) >= 0, mean_gap)
    lines = ",\n ".join(json.dumps([pair.correct, pair.competitor, pair.pool]) for pair in found)
    Path(PAIRS).write_text(f"[{lines}]\n", encoding="utf-8")
    print(f"Written: {PAIRS}, {len(found)} pairs")


if __name__ == "__main__":
    main(sys.argv[1])
