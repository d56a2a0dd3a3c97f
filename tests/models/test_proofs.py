"""Proofs by behaviour at the start of a run: no future token is seen, and no packed document sees another."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import conv1d
from transformers import PreTrainedModel
from transformers.models.lfm2 import modeling_lfm2

from lightning_sft.errors import UserError
from lightning_sft.models.access import find_causal_lm
from lightning_sft.models.adapters import add_adapter
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.proofs import check_causal, prove_documents_apart
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.small_copy import VOCABULARY, WINDOW, CopyFailed, small_copy
from lightning_sft.objectives import NLL
from tests.models.architectures import documents, packed, padded
from tests.models.zoo import save_tiny, tiny_model
from tests.toys import toy_model


def check(model: PreTrainedModel) -> None:
    check_causal(model, small_copy(model))


def prove(scorer: TokenScorer) -> bool:
    return prove_documents_apart(scorer.causal_lm, small_copy(scorer.causal_lm))


SEE_THE_FUTURE = ("xlm", "xlnet", "cpmant", "bert", "roberta")


@pytest.mark.parametrize("kind", SEE_THE_FUTURE)
def test_models_that_see_the_future_are_refused(kind: str, tmp_path: Path) -> None:
    overrides = {"is_decoder": False} if kind in ("bert", "roberta") else {}
    folder = save_tiny(tmp_path, kind, **overrides)
    with pytest.raises(UserError, match=rf"model_type '{kind}'\) sees the future: .* read the answer off its input"):
        build_scorer(ModelSettings(folder), NLL(), 259)


def test_the_refusal_names_a_field_that_helps_and_only_that(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "bert", is_decoder=False)
    with pytest.raises(UserError, match=r"config_overrides: \{is_decoder: true\}"):
        build_scorer(ModelSettings(folder), NLL(), 259)
    build_scorer(ModelSettings(folder, head="reference", config_overrides={"is_decoder": True}), NLL(), 259)
    with pytest.raises(UserError) as refused:
        check(tiny_model("xlnet"))
    assert "config_overrides" not in str(refused.value)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "mamba2", "qwen3_next", "llama4_text", "gpt_oss"])
def test_causal_models_pass_at_any_size_of_their_weights(kind: str) -> None:
    for std in (None, 0.1):
        check(tiny_model(kind, std))


def test_a_model_that_cannot_be_copied_is_looked_at_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CopyFailed("ValueError: no")

    monkeypatch.setattr("lightning_sft.models.trials.small_copy", fail)
    llama = ModelSettings(save_tiny(tmp_path / "llama", "llama"))
    build_scorer(llama, NLL(), 259)
    with pytest.raises(UserError, match="sees the future"):
        build_scorer(ModelSettings(save_tiny(tmp_path / "xlm", "xlm")), NLL(), 259)
    with pytest.raises(UserError, match=r"no small copy of it can be made.*order: grouped"):
        build_scorer(llama, NLL(), 259, packed=True)


#: weights at their start are too small for what leaks to show in them
NEAR_THEIR_START = {
    "lfm2": {},
    "qwen3_5_text": {"initializer_range": 0.006},
    "qwen3_next": {},
    "gpt_oss": {},
    "bamba": {"initializer_range": 0.006},
}


@pytest.mark.parametrize("kind", NEAR_THEIR_START)
def test_packing_is_refused_however_small_the_weights_are(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, kind, std=None, **NEAR_THEIR_START[kind])
    with pytest.raises(UserError, match=r"cannot train on packed rows: a changed document .*order: grouped"):
        build_scorer(ModelSettings(folder, init="random", dtype="bfloat16"), NLL(), 259, packed=True)


def test_documents_are_compared_with_rows_of_their_own() -> None:
    """Gemma 3's bidirectional attention keeps packs apart, and sees the future within each document."""
    model = tiny_model("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(UserError, match="sees the future"):
        check(model)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "mistral", "deepseek_v3", "gemma3_text", "llama4_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_architectures_that_keep_documents_apart_may_pack(kind: str, dtype: torch.dtype) -> None:
    scorer = TokenScorer(tiny_model(kind).to(dtype)).train()
    state = torch.random.get_rng_state()
    before = {name: p.clone() for name, p in scorer.named_parameters()}
    assert not prove(scorer)
    check(scorer.causal_lm)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(m.training for m in scorer.modules())
    assert all(torch.equal(p, before[name]) for name, p in scorer.named_parameters())


def conv_within_documents(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, **kwargs: object):
    """What the kernel causal_conv1d does: a causal convolution that begins anew with each document."""
    seq_idx = kwargs.get("seq_idx")
    ids = torch.zeros(x.shape[-1], dtype=torch.int32) if seq_idx is None else seq_idx[0]
    size = weight.shape[-1]
    parts = [x[..., ids == i] for i in ids.unique_consecutive()]
    return torch.cat(
        [conv1d(p, weight[:, None], bias, 1, size - 1, 1, len(weight))[..., : p.shape[-1]] for p in parts], -1
    )


def test_boundaries_are_told_to_kernels_that_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = TokenScorer(tiny_model("lfm2"))
    with pytest.raises(
        UserError, match=r"moves the log-probabilities.*keep packed sequences apart without `causal_conv1d`"
    ):
        prove(scorer)
    monkeypatch.setattr(modeling_lfm2, "causal_conv1d_fn", conv_within_documents)
    scorer.with_boundaries = prove(scorer)
    assert scorer.with_boundaries
    results = []
    for batch in (padded(documents()), packed(documents())):
        scorer.zero_grad()
        output = scorer(batch, NLL())
        output.loss_sum.backward()
        results.append((output.loss_sum.detach(), {n: p.grad.clone() for n, p in scorer.named_parameters()}))
    (loss, gradients), (other_loss, others) = results
    torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=0)
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=0, atol=1e-5 * largest, msg=name)


def test_a_small_copy_has_every_kind_of_layer_and_is_small() -> None:
    model = tiny_model(
        "lfm2", num_hidden_layers=6, layer_types=["conv", "conv", "conv", "full_attention", "conv", "conv"]
    )
    copy = small_copy(model)
    assert copy.config.layer_types == ["conv", "conv", "conv", "full_attention"]
    windowed = tiny_model("mistral", sliding_window=200, vocab_size=2000, intermediate_size=640)
    copy = small_copy(windowed)
    assert (copy.config.sliding_window, copy.config.vocab_size) == (WINDOW, VOCABULARY)
    assert copy.config.intermediate_size == 128
    adapted = add_adapter(model, LoraConfig(r=2, target_modules=["in_proj", "q_proj"]))
    assert small_copy(find_causal_lm(adapted)).config.num_hidden_layers == 4
    assert {p.dtype for p in small_copy(toy_model().bfloat16()).parameters()} == {torch.float32}


def test_the_configuration_of_the_model_stays_as_it_is() -> None:
    model = tiny_model("gemma3_text")
    before = model.config.to_dict()
    small_copy(model, num_attention_heads=2)
    assert model.config.to_dict() == before
