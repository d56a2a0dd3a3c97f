"""What adapters reach: "all-linear" works or says why, "everything" leaves nothing out, and what is saved loads."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from lightning_sft.errors import UserError
from lightning_sft.models.adapters import add_adapter, load_adapter
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.reach import Reach, measure_reach, without_gradient
from lightning_sft.models.targets import ALL_LINEAR, EVERYTHING, adaptable_weights, resolve_targets
from lightning_sft.objectives import NLL
from tests.models.zoo import save_tiny, tiny_model

IDS = torch.arange(5, 45)[None]


def lora(targets: Any = ALL_LINEAR, **fields: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=targets, init_lora_weights=False, **fields)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def adapted(kind: str, config: Any) -> tuple[PeftModel, Reach]:
    base = tiny_model(kind)
    weights = adaptable_weights(base)
    model = add_adapter(base, config)
    return model, measure_reach(weights, model)


#: share of the weights of linear layers and experts that "all-linear" adapts, counted by hand from the layers' sizes
SHARES = {
    "qwen3_moe": 1.0,
    "gpt_oss": 0.14,
    "granitemoe": 0.14,
    "deepseek_v3": 0.68,
    "llama4_text": 0.29,
    "phimoe": 0.14,
    "nemotron_h": 0.60,
    "laguna": 0.49,
    "inkling2_text": 0.33,
}


@pytest.mark.parametrize("kind", SHARES)
def test_all_linear_says_what_it_reaches_and_everything_reaches_more(kind: str) -> None:
    _, linear = adapted(kind, lora())
    _, everything = adapted(kind, lora(EVERYTHING))
    assert linear.share == pytest.approx(SHARES[kind], abs=0.01)
    assert everything.share >= linear.share
    # what transformers renames (laguna, inkling2) and what Mamba's kernel reads past its layer cannot be adapted
    assert everything.share == 1.0 or kind in ("laguna", "inkling2_text", "nemotron_h")
    assert not any("expert" in name and "shared" not in name for name in everything.left_out)
    assert f"{linear.share:.0%} of their values" in str(linear)
    if linear.left_out:
        assert "Without an adapter: " in str(linear)


def test_the_reach_is_that_of_the_modules_themselves() -> None:
    model, reach = adapted("gpt_oss", lora())
    wrapped = [n for n, m in model.named_modules() if isinstance(m, LoraLayer)]
    assert len(wrapped) == len(reach.adapted) == 8
    experts = {f"model.layers.{i}.mlp.experts.{w}" for i in (0, 1) for w in ("gate_up_proj", "down_proj")}
    assert set(reach.left_out) == experts
    total = sum(p.numel() for p in adaptable_weights(tiny_model("gpt_oss")).values())
    left = sum(p.numel() for n, p in tiny_model("gpt_oss").named_parameters() if n in experts)
    assert reach.share == pytest.approx(1 - left / total)
    assert f"model.layers.*.mlp.experts.gate_up_proj ({2 / 3 * left / total:.0%})" in str(reach)


@pytest.mark.parametrize("targets", [ALL_LINEAR, EVERYTHING])
@pytest.mark.parametrize(
    "kind", ["llama4_text", "phimoe", "deepseek_v4", "nemotron_h", "laguna", "inkling2_text", "mixtral"]
)
def test_adapters_train_and_plain_peft_loads_and_merges_them(kind: str, targets: str, tmp_path: Path) -> None:
    model, _ = adapted(kind, lora(targets, lora_dropout=0.05))
    model.train()(input_ids=IDS, use_cache=False).logits.square().mean().backward()
    model.save_pretrained(tmp_path)
    expected = logits(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys")
        again = PeftModel.from_pretrained(tiny_model(kind), str(tmp_path))
    assert torch.equal(logits(again), expected)
    torch.testing.assert_close(logits(again.merge_and_unload()), expected, rtol=0, atol=1e-4)
    assert torch.equal(logits(load_adapter(tiny_model(kind), str(tmp_path))), expected)


MIXTURES = ("mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "glm4_moe", "olmoe", "llama")


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"])
def test_the_shipped_fragments_work_on_mixtures_of_experts(kind: str, fields: dict[str, Any]) -> None:
    model, reach = adapted(kind, LoraConfig(r=4, lora_dropout=0.05, target_modules=ALL_LINEAR, **fields))
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    assert {type(m.lora_dropout["default"]) for m in layers if not hasattr(m, "parameter_name")} == {nn.Dropout}
    assert all(m.lora_dropout["default"].p == 0.05 for m in layers if not hasattr(m, "parameter_name"))
    if "use_dora" in fields:  # which peft does not put on single weights
        assert not any(hasattr(m, "parameter_name") for m in layers)
        assert kind == "llama" or reach.share < 1
    model.train()(input_ids=IDS, use_cache=False).logits.square().mean().backward()
    assert not without_gradient(model) or kind in ("glm4_moe", "deepseek_v3")


def test_plain_all_linear_is_left_to_peft() -> None:
    config = lora(lora_dropout=0.1)
    assert resolve_targets(config, tiny_model("llama")) is config
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        theirs = get_peft_model(tiny_model("llama"), lora(lora_dropout=0.1, task_type="CAUSAL_LM"))
    ours = add_adapter(tiny_model("llama"), config)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    given = lora(EVERYTHING)
    add_adapter(tiny_model("gpt_oss"), given)
    assert given.target_modules == EVERYTHING  # a configuration may be used again


@pytest.mark.parametrize(
    ("kind", "targets", "message"),
    [
        ("llama4_text", ["router"], r"model\.layers\.\*\.feed_forward\.router .*Llama4Router does more than a product"),
        ("deepseek_v4", ["o_a_proj"], r"DeepseekV4GroupedLinear does more .* exclude_modules: \[o_a_proj\]"),
        ("laguna", r".*shared_experts\.up_proj", r"shared_experts\.up_proj .*could not load the adapter again"),
        ("nemotron_h", ["out_proj"], r"does not fit NemotronHForCausalLM.*'out_proj' is incompatible with Mamba"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_by_name(kind: str, targets: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        add_adapter(tiny_model(kind), lora(targets))


@pytest.mark.parametrize("config", [IA3Config(target_modules=EVERYTHING), lora(EVERYTHING, use_dora=True)])
def test_everything_is_for_plain_lora(config: Any) -> None:
    with pytest.raises(UserError, match=r"target_modules is 'everything' for .* target_modules: all-linear"):
        add_adapter(tiny_model("gpt_oss"), config)


def test_rows_of_tokens_that_a_batch_lacks_are_no_fault() -> None:
    absent = [int(i) for i in range(250) if i not in IDS.flatten().tolist()][:2]
    model, _ = adapted("llama", LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=absent))
    model(input_ids=IDS, use_cache=False).logits[..., IDS.flatten()[0]].square().mean().backward()
    assert any("trainable_tokens" in name and p.requires_grad for name, p in model.named_parameters())
    assert without_gradient(model) == []


def test_adapters_without_gradient_are_named() -> None:
    model, _ = adapted("llama", LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    causal_lm: PreTrainedModel = model.get_base_model()
    model(input_ids=IDS, use_cache=False).logits.square().mean().backward()
    assert without_gradient(model) == []
    model.zero_grad()
    hidden = causal_lm.model.embed_tokens(IDS)
    causal_lm.model.layers[0].self_attn.q_proj(hidden).square().mean().backward()
    names = [name.removeprefix("base_model.model.model.") for name in without_gradient(model)]
    assert names == ["layers.0.self_attn.v_proj", "layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]


def test_the_scorer_tells_the_reach(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "gpt_oss")
    assert build_scorer(ModelSettings(folder), NLL(), 259).adapter_reach is None
    reach = build_scorer(ModelSettings(folder, adapter=lora()), NLL(), 259).adapter_reach
    assert reach is not None
    assert reach.share == pytest.approx(SHARES["gpt_oss"], abs=0.01)
