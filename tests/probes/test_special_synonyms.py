"""Special tokens and tokens without letters are near-synonyms of nothing, whatever their embedding rows."""

import pytest
import torch

from lightning_sft.probes import near_synonyms as module
from lightning_sft.probes.near_synonyms import near_synonyms
from tests.toys import toy_model, toy_tokenizer


def test_special_tokens_are_near_synonyms_of_nothing() -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    word, other, end = *tokenizer.convert_tokens_to_ids(["a", "b"]), tokenizer.eos_token_id
    rows = model.get_input_embeddings().weight.data
    rows[other] = rows[end] = rows[word]
    one, two = torch.tensor([word, word, end]), torch.tensor([other, end, word])
    assert near_synonyms(model, tokenizer, one, two, wordnet="none").tolist() == [True, False, False]
    assert near_synonyms(model, None, one, two, wordnet="none").tolist() == [True, True, True]


def test_numbers_are_near_synonyms_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = toy_model("llama"), toy_tokenizer()
    digit, word, other = tokenizer.convert_tokens_to_ids(["2", "b", "c"])
    rows = model.get_input_embeddings().weight.data
    rows[:] = rows[word]
    one, two = torch.tensor([digit, word, word]), torch.tensor([word, digit, other])
    assert near_synonyms(model, tokenizer, one, two, wordnet="none").tolist() == [False, False, True]
    monkeypatch.setattr(module, "are_synonyms", lambda *_: True)  # as WordNet has "2" beside "two"
    assert near_synonyms(model, tokenizer, one, two, wordnet=".").tolist() == [False, False, True]
