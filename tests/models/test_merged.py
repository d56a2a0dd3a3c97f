"""Adapters merged for a while: the same answers, and weights that were never touched."""

import copy

import peft
import pytest
import torch

from lightning_sft.models.adapters import add_adapter
from lightning_sft.models.merged import merged_adapters
from tests.toys import toy_model

CONFIGS = {
    "lora": peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    "dora": peft.LoraConfig(r=4, target_modules="all-linear", use_dora=True, init_lora_weights=False),
    "ia3": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], init_ia3_weights=False),
    "loha": peft.LoHaConfig(r=4, target_modules=["q_proj"], init_weights=False),
}
IDS = torch.arange(5, 25)[None]


def adapted(config: peft.PeftConfig, **options: object) -> peft.PeftModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return add_adapter(toy_model(**options), copy.deepcopy(config))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    was, _ = model.training, model.eval()
    found = model(input_ids=IDS).logits
    model.train(was)
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_and_put_back_bit_for_bit(kind: str) -> None:
    model = adapted(CONFIGS[kind]).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    places = [p.data_ptr() for p in model.parameters()]
    random, own = torch.get_rng_state(), logits(model)
    base = [m for m in model.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    with merged_adapters(model) as count:
        assert count == len(base) > 0
        assert all(layer.merged for layer in base)
        assert torch.allclose(logits(model), own, rtol=1e-5, atol=1e-5)
    assert not any(layer.merged for layer in base)
    assert places == [p.data_ptr() for p in model.parameters()], "the very tensors that were there"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(logits(model), own)
    assert torch.equal(random, torch.get_rng_state())
    assert model.training


def test_put_back_after_an_error() -> None:
    model = adapted(CONFIGS["lora"])
    own = logits(model)
    with pytest.raises(KeyboardInterrupt), merged_adapters(model):
        raise KeyboardInterrupt
    assert torch.equal(logits(model), own)


def test_left_alone_where_merging_would_change_the_model() -> None:
    """In 16 bits a young adapter is rounded off; a shared weight is another layer's as well."""
    with merged_adapters(adapted(CONFIGS["lora"], dtype=torch.bfloat16)) as count:
        assert count == 0
    model = adapted(CONFIGS["lora"])
    with torch.autocast("cpu", torch.bfloat16), merged_adapters(model) as count:
        assert count == 0
    with model.disable_adapter(), merged_adapters(model) as count:
        assert count == 0
    layers = model.base_model.model.model.layers
    layers[1].self_attn.q_proj.base_layer.weight = layers[0].self_attn.q_proj.base_layer.weight
    with merged_adapters(model) as count:
        assert count == 12
    with merged_adapters(toy_model()) as count:
        assert count == 0


def test_a_layer_that_merging_would_change_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(CONFIGS["lora"])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    own = logits(model)
    merge = type(layer).merge

    def twice(self: object, *args: object, **kwargs: object) -> None:
        merge(self, *args, **kwargs)
        if self is layer:
            layer.base_layer.weight.data *= 1.5

    monkeypatch.setattr(type(layer), "merge", twice)
    with merged_adapters(model) as count:
        assert count == 13
        assert torch.allclose(logits(model), own, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), own)
