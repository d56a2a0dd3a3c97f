"""Reference models: what they predict, what a checkpoint holds of them, and which are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.head import HeadOutput
from lightning_sft.models.access import find_causal_lm
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.reference import FrozenReference, Snapshot, check_same_vocabulary
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.objectives import ASFT, IWSFT, NLL, PSFT, Objective
from tests.toys import save_toy, toy_tokenizer

VOCABULARY = len(toy_tokenizer())


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("student") / "student", seed=0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("teacher") / "teacher", "qwen3", seed=1, vocab_size=270, hidden_size=48)


def batch() -> dict[str, Tensor]:
    ids = torch.arange(3, 27).view(2, 12)
    labels = ids.clone()
    labels[:, :4] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def build(folder: Path, objective: Objective, **settings: Any) -> TokenScorer:
    return build_scorer(ModelSettings(str(folder), **settings), objective, VOCABULARY)


def logp_of(folder: Path, rows: int, dtype: str = "float32") -> Tensor:
    """The log-probabilities of the labels under a model on disk, over its first rows of logits."""
    model = find_causal_lm(build(folder, NLL(), dtype=dtype).model).eval()
    given = batch()
    with torch.no_grad():
        logits = model(input_ids=given["input_ids"]).logits[:, :-1, :rows].float().log_softmax(-1)
    at = given["labels"][:, 1:] != -100
    return logits.gather(-1, given["input_ids"][:, 1:, None])[..., 0][at]


def move(scorer: TokenScorer) -> None:
    with torch.no_grad():
        for parameter in scorer.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)), alpha=0.05)


def reference_logp(scorer: TokenScorer, objective: Objective) -> Tensor:
    output = scorer(batch(), objective)
    assert isinstance(output, HeadOutput)
    assert output.scores.reference_logp is not None
    return output.scores.reference_logp


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules="all-linear", init_lora_weights=False)])
@pytest.mark.parametrize("head", ["fused", "reference"])
def test_another_checkpoint_predicts_as_it_does_by_itself(student, teacher, adapter, head):
    scorer = build(student, IWSFT(), reference=str(teacher), adapter=adapter, head=head)
    assert isinstance(scorer.reference, FrozenReference)
    assert not any(p.requires_grad for p in scorer.reference.parameters())
    assert not scorer.reference.training
    torch.testing.assert_close(reference_logp(scorer, IWSFT()), logp_of(teacher, 263), rtol=1e-5, atol=1e-5)
    # nothing reaches it, and a search for the model does not find it
    scorer(batch(), ASFT()).loss_sum.backward()
    assert all(p.grad is None for p in scorer.reference.parameters())
    assert find_causal_lm(scorer) is scorer.causal_lm


def test_a_reference_has_a_dtype_of_its_own(student, teacher):
    scorer = build(student, IWSFT(), reference=str(teacher), reference_dtype="bfloat16")
    assert {p.dtype for p in scorer.reference.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in scorer.model.parameters()} == {torch.float32}
    rounded = logp_of(teacher, 263, "bfloat16")
    torch.testing.assert_close(reference_logp(scorer, IWSFT()), rounded, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("reference", [True, False], ids=["checkpoint", "copy"])
def test_a_frozen_reference_is_left_out_of_checkpoints_and_survives_them(student, teacher, reference):
    settings = {"reference": str(teacher)} if reference else {}
    scorer = build(student, IWSFT(), **settings)
    before = reference_logp(scorer, IWSFT())
    move(scorer)
    state = scorer.state_dict()
    assert not [name for name in state if name.startswith("reference.")]
    other = build(student, IWSFT(), **settings)
    other.load_state_dict(state, strict=True)
    torch.testing.assert_close(reference_logp(other, IWSFT()), before)
    for name, parameter in other.model.named_parameters():
        assert torch.equal(parameter, scorer.model.get_parameter(name))


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules="all-linear", init_lora_weights=False)])
@pytest.mark.parametrize("head", ["fused", "reference"])
def test_a_snapshot_is_the_model_as_it_was(student, adapter, head):
    objective = PSFT(4)
    scorer = build(student, objective, adapter=adapter, head=head)
    assert isinstance(scorer.reference, Snapshot)
    trainable = sum(p.numel() for p in scorer.model.parameters() if p.requires_grad)
    assert sum(copy.numel() for copy in scorer.reference.buffers()) == trainable + 1
    before = scorer(batch(), NLL()).scores.logp
    storages = [p.data_ptr() for p in scorer.model.parameters()]
    move(scorer)
    output = scorer(batch(), objective)
    torch.testing.assert_close(output.scores.reference_logp, before)
    assert (output.scores.logp - before).abs().max() > 1e-3
    assert [p.data_ptr() for p in scorer.model.parameters()] == storages
    output.loss_sum.backward()
    gain = output.scores.logp - before
    torch.testing.assert_close(output.losses, -gain.exp().clamp(max=1.28))
    # it is a part of the checkpoint
    other = build(student, objective, adapter=adapter, head=head)
    other.load_state_dict(scorer.state_dict(), strict=True)
    torch.testing.assert_close(reference_logp(other, objective), before)
    for _ in range(4):
        torch.testing.assert_close(reference_logp(scorer, objective), before)
        scorer.step_ended(objective)
    torch.testing.assert_close(reference_logp(scorer, objective), output.scores.logp)


def test_what_a_scorer_can_compare_with(student, teacher):
    lora = LoraConfig(target_modules="all-linear")
    plain, adapted = build(student, NLL()), build(student, NLL(), adapter=lora)
    taught, proximal = build(student, ASFT(), reference=str(teacher)), build(student, PSFT(2))
    table = [[scorer.can_compare(o) for o in (NLL(), ASFT(), PSFT(2))] for scorer in (plain, adapted, taught, proximal)]
    assert table == [[True, False, False], [True, True, False], [True, True, False], [True, False, True]]


def test_nothing_is_loaded_for_an_objective_that_compares_with_nothing(student):
    assert build(student, NLL(), reference="no/such-model").reference is None


def test_refused_references(student, teacher):
    with pytest.raises(UserError, match=r"PSFT compares the model with snapshots of itself.*reference: null"):
        build(student, PSFT(2), reference=str(teacher))
    with pytest.raises(UserError, match=r"263 rows of logits, and the model has 270"):
        build(teacher, ASFT(), reference=str(student))


def test_another_vocabulary_is_refused_by_name(student, tmp_path):
    check_same_vocabulary(toy_tokenizer(), str(student))
    grown = toy_tokenizer()
    grown.add_special_tokens({"additional_special_tokens": ["<|think|>"]})
    with pytest.raises(UserError, match=r"1 tokens have another id .*'<\|think\|>' \(259 and none\)"):
        check_same_vocabulary(grown, str(student))
