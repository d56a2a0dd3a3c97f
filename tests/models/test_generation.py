import torch

from lightning_sft.models.generation import generate
from tests.toys import toy_model, toy_tokenizer


def test_batched_answers_equal_those_of_single_prompts_and_leave_no_trace() -> None:
    model, tokenizer = toy_model("llama", seed=3).train(), toy_tokenizer()
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
