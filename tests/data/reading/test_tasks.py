"""Tasks of reasoning_gym: deterministic, disjoint, scored by the task."""

import pickle

import pytest

from lightning_sft.data import ReasoningGymTask, SFTDataModule
from lightning_sft.errors import UserError
from tests.data.helpers import trained_text
from tests.toys import toy_tokenizer

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def task(size: int = 40, seed: int = 0, **options: object) -> ReasoningGymTask:
    return ReasoningGymTask("chain_sum", size=size, seed=seed, config=SMALL, **options)


def test_items_depend_on_the_seed_alone():
    first, again, other = ([e.plain for e in task(seed=seed).examples()] for seed in (0, 0, 1))
    assert first == again
    assert len(first) == 40
    # neighbouring seeds must not give shifted copies of one list
    assert len({*first} & {*other}) < 20
    assert pickle.loads(pickle.dumps(task())).size == 40


def test_sets_are_disjoint_and_the_dropped_are_counted():
    data = SFTDataModule(train=task(60), val=task(60, 1), test=task(60, 2), tokenizer=toy_tokenizer())
    data.setup("fit")
    data.setup("test")
    train = {e.prompt_key for e in task(60).examples()}
    val = {row.prompt_text for row in data.generation_rows("val")}
    test = {row.prompt_text for row in data.generation_rows("test")}
    assert not val & test
    assert data.report["val"].leaked_dropped == sum(e.prompt_key in train for e in task(60, 1).examples()) > 0
    assert data.report["val"].rows + data.report["val"].leaked_dropped == 60
    assert data.report["test"].rows + data.report["test"].leaked_dropped == 60
    alone = SFTDataModule(train=task(60), val=task(60, 1), test=task(60, 2), tokenizer=toy_tokenizer())
    alone.setup("test")
    assert [row.prompt_ids for row in alone.generation_rows("test")] == [
        r.prompt_ids for r in data.generation_rows("test")
    ]


def test_split_of_a_task_is_disjoint_too():
    data = SFTDataModule(train=task(200), val_split=0.25, tokenizer=toy_tokenizer())
    data.setup("validate")
    data.setup("fit")
    prompts = {row.prompt_text for row in data.generation_rows("val")}
    tokenizer = data.tokenizer
    for batch in data.train_dataloader():
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            prompt = ids[(labels == -100) & (mask == 1)]
            assert tokenizer.decode(prompt).removesuffix("\n") + "\n" not in prompts
    assert data.report["val"].leaked_dropped > 0


def test_same_seed_for_train_and_test_is_refused():
    data = SFTDataModule(train=task(), test=task(), tokenizer=toy_tokenizer())
    with pytest.raises(UserError, match="also stand in train"):
        data.setup("test")


def test_score_is_the_tasks_own_and_all_or_nothing():
    data = SFTDataModule(train=task(), val=task(10, 1), tokenizer=toy_tokenizer())
    data.setup("fit")
    row = data.generation_rows("val", 1)[0]
    assert row.reference is not None
    assert data.score(row, f" {row.reference}\n") == 1.0
    for wrong in ("", "x", f"{int(row.reference) + 1}", f"the answer is {row.reference}", "State the final answer"):
        assert data.score(row, wrong) == 0.0
    batch = next(iter(data.val_dataloader()))
    assert trained_text(data.tokenizer, batch) == row.reference + "<|im_end|>"


def test_prefix_suffix_and_system():
    example = next(task(prefix="Q: ", suffix=" Number only.").examples())
    assert example.messages[0]["content"].startswith("Q: State")
    assert example.messages[0]["content"].endswith(" Number only.")


def test_prompts_can_be_capped():
    questions = [e.plain[0] for e in ReasoningGymTask("chain_sum", size=20, max_prompt_chars=70).examples()]
    assert len(questions) == 20
    assert max(map(len, questions)) <= 70
    with pytest.raises(UserError, match="Raise max_prompt_chars"):
        list(ReasoningGymTask("chain_sum", size=5, max_prompt_chars=3).examples())


def test_bad_tasks_are_named():
    with pytest.raises(UserError, match=r"no task 'chain_summ'.*chain_sum"):
        list(ReasoningGymTask("chain_summ").examples())
    with pytest.raises(UserError, match="does not take config"):
        list(ReasoningGymTask("chain_sum", config={"terms": 2}).examples())
    with pytest.raises(UserError, match="size must be at least 1"):
        ReasoningGymTask("chain_sum", size=0)
