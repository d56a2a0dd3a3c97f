"""From settings to a scorer."""

from typing import Any

import torch
from transformers import AttentionInterface

from lightning_sft.models.trials import checked_head
from tests.toys import toy_model


def test_the_head_is_checked_on_the_cpu_although_training_uses_flash_attention() -> None:
    def only_on_a_gpu(*_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        raise RuntimeError("this kernel needs a GPU")

    AttentionInterface.register("flash_of_a_gpu", only_on_a_gpu)
    model = toy_model()
    model.config._attn_implementation = "flash_of_a_gpu"
    assert checked_head("fused", model) == "fused"
    assert model.config._attn_implementation == "flash_of_a_gpu"
