"""Documents behind each other in one row: none sees another, and losses and gradients are those of padded rows."""

import numpy as np
import pytest
import torch
from peft import LoraConfig

from lightning_sft.data.batches.collate import Collator, FlatCollator
from lightning_sft.data.storage.dataset import Row
from lightning_sft.errors import UserError
from lightning_sft.head import HeadOutput
from lightning_sft.models import attention
from lightning_sft.models.adapters import add_adapter
from lightning_sft.models.attention import PER_DOCUMENT, attention_per_document, block_mask, kernel_serves
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.checkpointing import enable_checkpointing
from lightning_sft.models.packing import (
    PROVEN,
    choose_attention,
    decoder_inputs,
    document_lengths,
    flattened,
    per_document,
    supervised,
)
from lightning_sft.models.proofs import prove_documents_apart
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.models.small_copy import small_copy
from lightning_sft.objectives import DFT, IWSFT, NLL, TALR, Objective, PerSource
from lightning_sft.objectives.base import RunFacts
from tests.configs.families import save_family
from tests.devices import RunIf
from tests.models.architectures import PACKS, VOCABULARY, documents, packed, padded, tiny_model
from tests.models.zoo import save_tiny
from tests.toys import save_toy

IMPLEMENTATIONS = (PER_DOCUMENT, "sdpa", "eager")
NO_SDPA = ("gemma2",)  # its capped products are not in sdpa
DOUBLE = ("gpt2", "gpt_neox", "nemotron", "persimmon", "phi", "starcoder2")  # their norms compute in float64
CASES = [  # all architectures under the default attention; under the others, one here and the rest in the slow tests
    pytest.param(kind, implementation, marks=[pytest.mark.slow] * (implementation != PER_DOCUMENT and kind != "llama"))
    for kind in PROVEN
    for implementation in IMPLEMENTATIONS
    if not (implementation == "sdpa" and kind in NO_SDPA)
]


def score(
    scorer: TokenScorer, batch: dict[str, torch.Tensor], objective: Objective | None
) -> tuple[HeadOutput, dict[str, torch.Tensor]]:
    """What the head returns, and the gradients by name."""
    scorer.zero_grad()
    output = scorer(batch, objective or NLL())
    output.loss_sum.backward()
    gradients = {name: p.grad.clone() for name, p in scorer.named_parameters() if p.grad is not None}
    return output, gradients


def assert_same_training(scorer: TokenScorer, tolerance: float, objective: Objective | None = None) -> None:
    docs = documents()
    device = next(scorer.parameters()).device
    both = ({k: v.to(device) for k, v in batch.items()} for batch in (padded(docs), packed(docs)))
    (apart, expected), (together, got) = (score(scorer, batch, objective) for batch in both)
    torch.testing.assert_close(together.loss_sum, apart.loss_sum, rtol=tolerance, atol=0)
    assert got.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=tolerance * largest, msg=name)
    # token by token, and by document
    order = torch.cat([torch.full((len(docs[i]) - 1,), i) for pack in PACKS for i in pack])
    order = order.to(device)
    for i in range(len(docs)):
        mine, other = apart.scores.row == i, order == i
        torch.testing.assert_close(together.losses[other], apart.losses[mine], rtol=0, atol=10 * tolerance)
        assert (together.scores.source[other] == i % 2).all()
        assert len(together.scores.row[other].unique()) <= 1
    assert len(together.scores.row.unique()) == len(apart.scores.row.unique()) == 5


@pytest.mark.parametrize(("kind", "implementation"), CASES)
def test_packed_rows_train_like_padded_ones(kind, implementation, device):
    assert_same_training(TokenScorer(tiny_model(kind, implementation).to(device), "reference"), 1e-5)


@pytest.mark.parametrize(
    ("kind", "implementation"),
    # but for GPT-2, transformers' eager attention takes its softmax in fp32 whatever the model's dtype
    [(kind, i) for kind in DOUBLE for i in IMPLEMENTATIONS if i != "eager" or kind == "gpt2"],
)
def test_packed_rows_train_like_padded_ones_in_float64(kind, implementation, device):
    model = tiny_model(kind, implementation, torch.float64).to(device)
    assert_same_training(TokenScorer(model, "fused"), 1e-12)


@pytest.mark.parametrize(("kind", "implementation"), CASES)
def test_a_changed_document_moves_no_logit_of_another(kind, implementation):
    docs = documents()
    model = tiny_model(kind, implementation)

    def logits(batch):
        batch = flattened(batch) if per_document(model) else batch
        with torch.no_grad():
            return model(**decoder_inputs(model, batch)).logits.reshape(-1, model.config.vocab_size)

    before = logits(packed(docs))
    row = packed(docs)["row"].flatten()
    for changed in range(len(docs)):
        others = [(doc + 5) % VOCABULARY if i == changed else doc for i, doc in enumerate(docs)]
        moved = (logits(packed(others)) - before).abs().amax(-1)
        assert moved[(row != changed) & (row >= 0)].max() <= 1e-6
        assert moved[row == changed].max() > 1e-3


@pytest.mark.parametrize(
    ("objective", "tolerance"),
    [(DFT(), 1e-12), (TALR(), 1e-12), (PerSource({"a": NLL(), "b": DFT()}), 1e-12)],
    ids=lambda value: type(value).__name__,
)
def test_objectives_see_documents(objective, tolerance):
    objective.prepare(RunFacts(sources=("a", "b"), total_steps=10))
    scorer = TokenScorer(tiny_model("gpt_neox", PER_DOCUMENT, torch.float64))
    if objective.needs_seed():
        docs = documents()
        sums = [objective.statistics(scorer(make(docs), NLL()).scores) for make in (padded, packed)]
        for name in sums[0]:
            torch.testing.assert_close(sums[1][name], sums[0][name], rtol=tolerance, atol=0)
        objective.seed(sums[0])
    assert_same_training(scorer, tolerance, objective)


@pytest.mark.parametrize("implementation", [PER_DOCUMENT, "sdpa"])
def test_adapters_references_and_checkpointing(implementation):
    model = tiny_model("gpt_neox", implementation, torch.float64).train()
    enable_checkpointing(model)
    adapted = add_adapter(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    scorer = TokenScorer(adapted.double(), "fused")
    assert_same_training(scorer, 1e-12, IWSFT())


def test_per_document_attention_is_plain_sdpa_for_padded_rows_and_generation():
    for kind in ("llama", "gemma2"):
        plain = tiny_model(kind, "eager" if kind == "gemma2" else "sdpa")
        ours = tiny_model(kind, PER_DOCUMENT)
        batch = {k: v for k, v in padded(documents()).items() if k in ("input_ids", "attention_mask")}
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(ours(**batch).logits[real], plain(**batch).logits[real], rtol=0, atol=1e-5)
        left = {k: v.flip(1) for k, v in batch.items()}
        answers = [m.generate(**left, max_new_tokens=6, do_sample=False, pad_token_id=2) for m in (plain, ours)]
        assert torch.equal(*answers)


@pytest.mark.parametrize("kind", ["bloom", "falcon", "lfm2", "mamba", "opt"])
def test_architectures_that_mix_documents_are_refused_by_name(kind):
    with pytest.raises(UserError, match=rf"(?s){kind}.*cannot train on packed rows.*order: grouped.*llama"):
        prove_documents_apart(tiny_model(kind), small_copy(tiny_model(kind)))


def test_default_attention_under_packing(tmp_path):
    llama = save_toy(tmp_path / "llama")

    def attention(folder, packed=True, **settings):
        scorer = build_scorer(ModelSettings(str(folder), **settings), NLL(), 10, packed=packed)
        return scorer.causal_lm.config._attn_implementation

    assert attention(llama) == PER_DOCUMENT
    assert attention(llama, packed=False) == attention(llama, attn_implementation="sdpa") == "sdpa"
    with pytest.raises(UserError, match=r"per_document.*not for 'opt'"):
        choose_attention(tiny_model("opt"), PER_DOCUMENT)
    assert attention(llama, neftune_noise_alpha=5) == PER_DOCUMENT


def test_towers_keep_the_attention_that_they_know(tmp_path):
    """Gemma 4's tower for sound has no scaled_dot_product_attention, SigLIP is not one that was proven."""
    gemma3 = build_scorer(ModelSettings(save_tiny(tmp_path / "3", "gemma3")), NLL(), 10, flat=True).causal_lm.config
    assert (gemma3.text_config._attn_implementation, gemma3.vision_config._attn_implementation) == (
        PER_DOCUMENT,
        "sdpa",
    )
    folder = save_family(tmp_path / "4", "gemma4")
    gemma4 = build_scorer(ModelSettings(str(folder)), NLL(), 10, flat=True).causal_lm.config
    assert (gemma4._attn_implementation, gemma4.text_config._attn_implementation) == ("sdpa", "sdpa")
    assert gemma4.audio_config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", PROVEN)
def test_flat_rows_train_like_padded_ones(kind):
    assert_flat_is_padded(tiny_model(kind, PER_DOCUMENT), 1e-5)


@pytest.mark.parametrize("kind", DOUBLE)
def test_flat_rows_train_like_padded_ones_in_float64(kind):
    assert_flat_is_padded(tiny_model(kind, PER_DOCUMENT, torch.float64), 1e-12)


@pytest.mark.parametrize("kind", ["gpt_neox", "starcoder2"])
def test_flat_rows_under_adapters_references_and_checkpointing(kind):
    model = tiny_model(kind, PER_DOCUMENT, torch.float64).train()
    enable_checkpointing(model)
    adapted = add_adapter(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    assert_flat_is_padded(adapted.double(), 1e-12, IWSFT())


def assert_flat_is_padded(model, tolerance, objective=None):
    """The collators' batches of one set of rows, some of whose tokens train nothing, give one loss and gradient."""
    scorer = TokenScorer(model, "fused" if tolerance < 1e-5 else "reference")
    rows = [
        Row(doc.numpy().astype(np.int32), np.arange(len(doc)) >= 1 + i % 2, i, i % 2)
        for i, doc in enumerate(documents())
    ]
    (apart, expected), (together, got) = (
        score(scorer, make(pad_token_id=2)(rows), objective) for make in (Collator, FlatCollator)
    )
    torch.testing.assert_close(together.loss_sum, apart.loss_sum, rtol=tolerance, atol=0)
    torch.testing.assert_close(together.losses, apart.losses, rtol=0, atol=10 * tolerance)
    for name in ("targets", "row", "source"):
        assert torch.equal(getattr(together.scores, name), getattr(apart.scores, name)), name
    assert got.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=tolerance * largest, msg=name)


def test_flat_rows_ask_for_a_proof_and_for_attention_by_document(tmp_path):
    llama, opt = save_toy(tmp_path / "llama"), save_toy(tmp_path / "opt", "opt")

    def built(folder, **settings):
        scorer = build_scorer(ModelSettings(str(folder), **settings), NLL(), 10, flat=True)
        return scorer.causal_lm.config._attn_implementation, scorer.flat_refusal

    assert built(llama) == (PER_DOCUMENT, None)
    attention, why = built(llama, attn_implementation="sdpa")
    assert attention == "sdpa"
    assert "masks every position against every other" in why
    attention, why = built(opt)
    assert attention == "sdpa"
    assert "OPTForCausalLM does not keep documents of one row apart: a changed document moves" in why


def test_nothing_is_read_back_from_a_flat_batch():
    """Boundaries, the longest document and supervised positions come with the batch, not from its tensors."""
    batch = FlatCollator(2)([Row(d.numpy(), np.ones(len(d), bool), i, 0) for i, d in enumerate(documents())])
    model = tiny_model("llama", PER_DOCUMENT)
    inputs = decoder_inputs(model, batch, with_boundaries=True)
    assert inputs["cu_seq_lens_q"] is inputs["cu_seq_lens_k"] is batch["cu_seq_lens"]
    assert inputs["max_length_q"] == inputs["max_length_k"] == batch["max_length"] == 11
    assert supervised(batch) is batch["supervised"]
    computed = {k: v for k, v in batch.items() if k not in ("cu_seq_lens", "max_length", "supervised")}
    assert torch.equal(supervised(computed), batch["supervised"])
    assert torch.equal(document_lengths(computed), document_lengths(batch))
    other = decoder_inputs(model, computed, with_boundaries=True)
    assert torch.equal(other["cu_seq_lens_q"], batch["cu_seq_lens"])
    assert other["max_length_q"] == 11
    assert torch.equal(other["attention_mask"], inputs["attention_mask"])


def test_one_mask_in_place_of_calls_for_each_document():
    """What a GPU falls back to where its kernel does not serve."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([7, 3, 11, 1])
    query, key, value = (torch.randn(1, heads, 22, 8, generator=generator) for heads in (4, 2, 2))
    module = torch.nn.Module().eval()
    ends = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
    module.num_key_value_groups = 2
    for window in (None, 4):
        one = attention_per_document(
            module, query, key, value, sizes[None, None, None], scaling=0.3, sliding_window=window
        )[0]
        mask = block_mask(ends, 22, window)
        other = attention_per_document(module, query, key, value, mask, scaling=0.3)[0]
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shares", [True, False], ids=["shares key heads", "does not"])
@pytest.mark.parametrize("window", [None, 4])
def test_the_kernel_of_several_lengths(shares: bool, window: int | None, monkeypatch: pytest.MonkeyPatch):
    """Torch's kernel runs on a GPU alone: another one with its signature tells what it is handed, by either version."""

    def kernel(query, key, value, ends, same, longest, also, *, scale, window_size, **more):
        assert (longest, also, ends is same, more) == (11, 11, True, {"enable_gqa": True} if shares else {})
        assert query.shape == (22, 4, 8)
        assert key.shape == value.shape == ((22, 2, 8) if shares else (22, 4, 8))
        left, right = window_size
        mask = block_mask(ends, 22, None if left < 0 else left + 1)
        assert right == 0
        parts = (part.transpose(0, 1)[None] for part in (query, key, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(*parts, mask, scale=scale, enable_gqa=True)
        return mixed[0].transpose(0, 1)

    monkeypatch.setattr(attention, "_kernel", lambda: (kernel, shares))
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([7, 3, 11, 1])
    query, key, value = (torch.randn(1, heads, 22, 8, generator=generator) for heads in (4, 2, 2))
    module = torch.nn.Module().eval()
    module.num_key_value_groups = 2
    ends = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
    got = attention._by_kernel(query, key, value, ends, 11, 0.3, window)
    want = attention_per_document(
        module, query, key, value, sizes[None, None, None], scaling=0.3, sliding_window=window
    )[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_which_queries_the_kernel_of_several_lengths_takes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "_is_recent", lambda device: True)
    monkeypatch.setattr(attention, "_kernel", lambda: (None, True))

    def serves(dtype: torch.dtype, dim: int, of_value: int) -> bool:
        return kernel_serves(torch.zeros(1, 2, 3, dim, dtype=dtype), torch.zeros(1, 2, 3, of_value, dtype=dtype))

    assert {(dtype, dim): serves(dtype, dim, dim) for dtype, dim in _QUERIES} == _QUERIES
    assert not serves(torch.bfloat16, 192, 128), "latent attention"
    monkeypatch.setattr(attention, "_kernel", lambda: None)  # a torch that has none
    assert not serves(torch.bfloat16, 8, 8)


_QUERIES = {
    (torch.bfloat16, 64): True,
    (torch.float16, 256): True,
    (torch.float32, 64): False,
    (torch.bfloat16, 512): False,
    (torch.bfloat16, 20): False,
}


@RunIf(min_cuda_gpus=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flat_rows_on_a_gpu_are_those_of_the_cpu(dtype):
    batch = FlatCollator(2)([Row(d.numpy(), np.ones(len(d), bool), i, 0) for i, d in enumerate(documents())])
    scorer = TokenScorer(tiny_model("llama", PER_DOCUMENT, dtype))
    expected, gradients = score(scorer, batch, NLL())
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    got, on_gpu = score(scorer.cuda(), moved, NLL())
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.losses.cpu(), expected.losses, rtol=tolerance, atol=tolerance)
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(on_gpu[name].cpu(), gradient, rtol=0, atol=5 * tolerance * largest)
