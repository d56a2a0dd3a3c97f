"""What an architecture cannot do ends in a sentence that says what to change, or works in another way."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lightning_sft.errors import UserError
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.positions import PositionLimit, row_limit
from lightning_sft.models.scorer import TokenScorer
from lightning_sft.objectives import NLL
from tests.models.remote import ACCESSOR, NOTHING, TWO_HEADS, save_remote
from tests.models.zoo import save_tiny, tiny_model
from tests.toys import save_toy

IDS = torch.randint(5, 250, (3, 12), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}


def build(folder: str, vocabulary: int = 259, **settings: Any) -> TokenScorer:
    return build_scorer(ModelSettings(folder, **settings), NLL(), vocabulary)


def assert_loss_is_the_models_own(scorer: TokenScorer) -> None:
    scorer.eval()
    ours = scorer(BATCH, NLL())
    own = scorer.causal_lm(**BATCH).loss
    torch.testing.assert_close(ours.loss_sum / len(ours.losses), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "sizes", "why"),
    [
        ("electra", {"embedding_size": 32}, "hidden states have 64 values and its unembedding takes 32"),
        ("rembert", {"input_embedding_size": 32, "output_embedding_size": 48}, "its unembedding takes 48"),
        ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "scale of its logits in words"),
    ],
)
def test_heads_that_are_no_plain_product_fall_back_to_the_models_logits(
    kind: str, sizes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path, kind, **sizes)
    with pytest.warns(UserWarning, match=f"{why}.*Falling back to the model's own logits"):
        scorer = build(folder)
    assert scorer.head == "reference"
    assert_loss_is_the_models_own(scorer)
    with pytest.raises(UserError, match=f"head=fused cannot serve this model: .*{why}"):
        build(folder, head="fused")


def test_tables_by_token_that_do_not_grow_are_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "deepseek_v4")
    build(folder)
    with pytest.raises(UserError, match=r"grew from 300 to 305 tokens, .*cannot run on the new.*add_special_tok"):
        build(folder, vocabulary=305)


@pytest.mark.parametrize("kind", ["ctrl", "openai-gpt"])
def test_gradient_checkpointing_is_refused_where_there_is_none(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, kind)
    with pytest.raises(UserError, match=r"gradient_checkpointing is true, but .* Set gradient_checkpointing: false"):
        build(folder, gradient_checkpointing=True)


def test_a_decoder_is_known_by_its_mapping_and_not_by_the_ending_of_its_name(tmp_path: Path) -> None:
    assert_loss_is_the_models_own(build(save_tiny(tmp_path / "decoder", "bert-generation")))
    folder = save_tiny(tmp_path / "encoder", "bert-generation")
    config = (tmp_path / "encoder/config.json").read_text()
    (tmp_path / "encoder/config.json").write_text(config.replace("BertGenerationDecoder", "BertGenerationEncoder"))
    with pytest.raises(UserError, match=r"BertGenerationEncoder.*not a causal"):
        build(folder)


#: rows of up to ... tokens run; longer ones fail (hard) or leave what the model was trained on
LIMITS: dict[str, PositionLimit | None] = {
    "mpt": PositionLimit(512, True),
    "whisper": PositionLimit(512, True),
    "gpt2": PositionLimit(512, True),
    "roberta": PositionLimit(511, True),  # its positions begin behind the padding token's id, 0 here
    "llama": PositionLimit(512, False),
    **dict.fromkeys(("jamba", "nemotron_h", "rwkv", "mamba2", "bloom", "xglm"), None),
}


@pytest.mark.parametrize("kind", LIMITS)
def test_the_longest_row_is_found_by_trying(kind: str) -> None:
    model = tiny_model(kind).eval()
    assert row_limit(model, 600) == LIMITS[kind]
    assert row_limit(model, 500) is None
    limit = LIMITS[kind]

    def run(length: int) -> None:
        with torch.no_grad():
            model(input_ids=torch.full((1, length), 7), use_cache=False)

    run(600 if limit is None or not limit.is_hard else limit.tokens)
    if limit is not None and limit.is_hard:
        with pytest.raises((RuntimeError, IndexError)):
            run(limit.tokens + 1)


def test_a_checkpoint_without_the_head_is_refused(tmp_path: Path) -> None:
    folder = save_toy(tmp_path / "whole", tie_word_embeddings=False)
    shutil.copytree(folder, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    weights["value_head.weight"] = torch.zeros(1, 32)
    save_file(weights, tmp_path / "headless/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"fit LlamaForCausalLM: lm_head.weight is not .*not know value_head"):
        build(str(tmp_path / "headless"))
    backbone = AutoModel.from_pretrained(folder)
    backbone.save_pretrained(tmp_path / "backbone")
    with pytest.raises(UserError, match=r"\(LlamaModel\), not a causal language model"):
        build(str(tmp_path / "backbone"))


def test_code_of_a_repository_is_served_if_it_has_the_usual_accessors(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"init": "random", "trust_remote_code": True}
    scorer = build(save_remote(tmp_path / "good", ACCESSOR), **settings)
    assert scorer.head == "fused"
    assert_loss_is_the_models_own(scorer)
    wrong = (("without", NOTHING, "returned None"), ("two", TWO_HEADS, "returned list.*of several heads"))
    for name, accessor, got in wrong:
        with pytest.raises(UserError, match=rf"AverageForCausalLM.*get_output_embeddings\(\) must return.*{got}"):
            build(save_remote(tmp_path / name, accessor), **settings)
