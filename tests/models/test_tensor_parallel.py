"""Which models can be split over ranks; tests/distributed runs those that can."""

from types import SimpleNamespace
from typing import Any

import pytest

from lightning_sft.errors import UserError
from lightning_sft.models.tensor_parallel import split_layers
from tests.toys import toy_model


@pytest.mark.parametrize(
    ("kind", "ranks", "message"),
    [
        ("gpt2", 2, r"GPT2LMHeadModel cannot be split: .*base_model_tp_plan\) names none; known are \['colwise', .*"),
        ("llama", 3, r"does not divide num_attention_heads = 4 of LlamaForCausalLM"),
        ("llama", 4, r"does not divide num_key_value_heads = 2 of LlamaForCausalLM"),
        ("gpt_neox", 8, r"does not divide num_attention_heads = 4 of GPTNeoXForCausalLM"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(kind: str, ranks: int, message: str) -> None:
    mesh: Any = SimpleNamespace(size=lambda: ranks)
    with pytest.raises(UserError, match=message):
        split_layers(toy_model(kind), mesh)


def test_a_plan_with_an_unknown_style_is_refused_by_name() -> None:
    model = toy_model("llama")
    model.config.base_model_tp_plan = {"layers.*.mlp.gate_proj": "packed_colwise"}
    mesh: Any = SimpleNamespace(size=lambda: 2)
    with pytest.raises(UserError, match=r"uses \['packed_colwise'\]; known are .*tensor_parallel_size: 1"):
        split_layers(model, mesh)
