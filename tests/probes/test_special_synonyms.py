"""Special tokens are near-synonyms of nothing, whatever their embedding rows."""

import torch

from lightning_sft.probes.near_synonyms import near_synonyms
from tests.toys import toy_model, toy_tokenizer


def test_special_tokens_are_near_synonyms_of_nothing() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    word, other, end = 5, 6, tokenizer.eos_token_id
    assert not {word, other} & set(tokenizer.all_special_ids)
    rows = model.get_input_embeddings().weight.data
    rows[other] = rows[end] = rows[word]
    one, two = torch.tensor([word, word, end]), torch.tensor([other, end, word])
    assert near_synonyms(model, tokenizer, one, two, wordnet="none").tolist() == [True, False, False]
    assert near_synonyms(model, None, one, two, wordnet="none").tolist() == [True, True, True]
