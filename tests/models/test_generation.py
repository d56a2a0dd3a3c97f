import warnings

import pytest
import torch

from lightning_sft.models.generation import answer_prompts, generate
from lightning_sft.models.sampling import Draws, Sampling
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
    """A configuration names other layers than its class has: the cache believes it, the class gives all a window."""
    model, tokenizer = zoo_model("qwen3_moe", layer_types=["full_attention", "sliding_attention"]), toy_tokenizer()
    prompts = [list(range(30, 80)), [7, 8, 9]]
    with pytest.warns(UserWarning, match="answers without keeping them"):
        answers = generate(model, tokenizer, prompts, max_new_tokens=4)
    ids = torch.tensor([prompts[0]])
    for _ in range(4):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    expected = ids[0, len(prompts[0]) :].tolist()
    stop = expected.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in expected else len(expected)
    assert answers[0] == tokenizer.decode(expected[:stop], skip_special_tokens=True)


def prompt_ids(*texts: str) -> list[list[int]]:
    tokenizer = toy_tokenizer()
    return [tokenizer(text).input_ids for text in texts]


def test_greedy_is_the_first_choice_whatever_the_generation_config_asks_for() -> None:
    model, tokenizer = toy_model("llama", seed=3), toy_tokenizer()
    (prompt,) = prompt_ids("some words")
    ids = torch.tensor([prompt])
    for _ in range(12):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    expected = ids[0, len(prompt) :].tolist()
    config = model.generation_config
    for name, value in {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "num_beams": 3,
        "suppress_tokens": [expected[0]],
    }.items():
        setattr(config, name, value)
    (answer,) = answer_prompts(model, tokenizer, [prompt], max_new_tokens=12)
    assert answer.tokens == expected
    assert not answer.stopped
    assert model.generation_config is config
    assert config.repetition_penalty == 5.0


def test_answers_say_where_they_end_and_how_sure_the_model_was() -> None:
    model, tokenizer = toy_model("llama", seed=3), toy_tokenizer()
    (prompt,) = prompt_ids("some words")
    (whole,) = answer_prompts(model, tokenizer, [prompt], max_new_tokens=8)
    logits = model(input_ids=torch.tensor([prompt + whole.tokens])).logits[0, len(prompt) - 1 : -1].detach()
    expected = torch.distributions.Categorical(logits=logits.double()).entropy().sum()
    assert whole.predictions == 8
    assert whole.entropy == pytest.approx(expected.item(), rel=1e-5)
    model.generation_config.eos_token_id = [2, whole.tokens[5]]
    first = whole.tokens.index(whole.tokens[5])
    (ended,) = answer_prompts(model, tokenizer, [prompt], max_new_tokens=8)
    assert (ended.tokens, ended.stopped, ended.predictions) == (whole.tokens[:first], True, first + 1)


def test_stop_strings_end_an_answer_and_are_cut_off() -> None:
    model, tokenizer = toy_model("llama", seed=3), toy_tokenizer()
    prompts = prompt_ids("some words", "x", "other")
    whole = answer_prompts(model, tokenizer, prompts, max_new_tokens=20)
    text = whole[0].text
    stop = text[4:7]
    assert text == 20 * "s"
    assert stop == "sss", "its beginning is the end of the prompt, which is no part of the answer"
    answers = answer_prompts(model, tokenizer, prompts, max_new_tokens=20, stop=[stop, "never so"])
    assert answers[0].stopped
    assert answers[0].text == text[: text.index(stop)]
    assert tokenizer.decode(answers[0].tokens) == text[: text.index(stop)] + stop
    for before, after in zip(whole[1:], answers[1:], strict=True):
        assert after.text == before.text.split(stop)[0]
    special = answer_prompts(model, tokenizer, prompts, max_new_tokens=20, stop=["<|im_end|>"])
    assert special == whole, "a token of the vocabulary is looked for as a token"


def test_samples_follow_the_model_and_depend_on_their_seeds_alone() -> None:
    model, tokenizer = toy_model("llama", seed=3), toy_tokenizer()
    short, long = prompt_ids("hi", "a longer prompt")
    before = torch.get_rng_state()
    draws = 4000
    sampled = answer_prompts(
        model, tokenizer, [short] * draws, max_new_tokens=1, batch_size=500, sampling=Sampling(0.05, range(draws))
    )
    with torch.no_grad():
        p = torch.softmax(model(input_ids=torch.tensor([short])).logits[0, -1].double() / 0.05, -1)
    counts = torch.zeros(len(p), dtype=torch.float64)
    for answer in sampled:
        counts[answer.tokens[0] if answer.tokens else tokenizer.eos_token_id] += 1
    likely = p * draws > 5
    assert likely.sum() > 5
    chi2 = ((counts - p * draws) ** 2 / (p * draws))[likely].sum()
    assert chi2 < likely.sum() + 4 * (2 * likely.sum()) ** 0.5
    together = answer_prompts(
        model, tokenizer, [short, long, short], max_new_tokens=9, sampling=Sampling(1.0, [5, 6, 7])
    )
    alone = [
        answer_prompts(model, tokenizer, [prompt], max_new_tokens=9, sampling=Sampling(1.0, [seed]))[0].text
        for prompt, seed in ((short, 5), (long, 6), (short, 7))
    ]
    assert [answer.text for answer in together] == alone
    assert together[0].text != together[2].text
    assert torch.equal(before, torch.get_rng_state())


def test_a_draw_is_never_a_token_without_probability() -> None:
    scores = torch.full((1, 5), -torch.inf)
    scores[0, 1] = scores[0, 3] = 0.0
    drawn = set()
    for seed in range(50):
        drawn.add(int(Draws(Sampling(1.0, [seed]), 1, 3)(torch.zeros(1, 3, dtype=torch.long), scores).argmax()))
    assert drawn == {1, 3}
