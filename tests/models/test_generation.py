import warnings

import pytest
import torch

from lightning_sft.models.generation import generate
from tests.models.zoo import tiny_model as zoo_model
from tests.toys import toy_model, toy_tokenizer


def test_batched_answers_equal_those_of_single_prompts_and_leave_no_trace(device: torch.device) -> None:
    model, tokenizer = toy_model("llama", seed=3).to(device).train(), toy_tokenizer()
    model.model.layers[0].eval()  # a part that its owner keeps in eval mode
    prompts = [tokenizer(text).input_ids for text in ("a longer prompt than the others", "hi", "some words", "x")]
    before = torch.get_rng_state()
    together = generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=3)
    alone = [generate(model, tokenizer, [p], max_new_tokens=6)[0] for p in prompts]
    assert together == alone
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert not model.model.layers[0].training


def test_no_prompts_no_answers() -> None:
    assert generate(toy_model(), toy_tokenizer(), []) == []


@pytest.mark.parametrize("kind", ["rwkv", "deepseek_v4", "llama", "gpt2", "mamba2"])
def test_prompts_are_answered_alone_where_batch_mates_would_matter(kind: str) -> None:
    model = zoo_model(kind)
    tokenizer = toy_tokenizer()
    prompts = [[7, 8, 9], list(range(40, 70)), [11, 12, 13, 14, 15]]
    matters = kind in ("rwkv", "deepseek_v4")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        together = generate(model, tokenizer, prompts, max_new_tokens=6)
        generate(model, tokenizer, prompts, max_new_tokens=6)
    said = [str(w.message) for w in seen if "one at a time" in str(w.message)]
    assert len(said) == matters
    assert together == [generate(model, tokenizer, [p], max_new_tokens=6)[0] for p in prompts]


def test_a_cache_that_fails_on_long_prompts_is_not_kept() -> None:
    """Qwen3-MoE with sliding windows: transformers masks as many positions as there are, and keeps a window of them."""
    model, tokenizer = zoo_model("qwen3_moe"), toy_tokenizer()
    prompts = [list(range(30, 80)), [7, 8, 9]]
    with pytest.warns(UserWarning, match="answers without keeping them"):
        answers = generate(model, tokenizer, prompts, max_new_tokens=4)
    ids = torch.tensor([prompts[0]])
    for _ in range(4):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    expected = ids[0, len(prompts[0]) :].tolist()
    stop = expected.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in expected else len(expected)
    assert answers[0] == tokenizer.decode(expected[:stop], skip_special_tokens=True)
