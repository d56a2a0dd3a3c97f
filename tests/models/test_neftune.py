import math

import pytest
import torch

from lightning_sft import SFTModule
from lightning_sft.errors import UserError
from lightning_sft.models.neftune import add_noise


def test_noise_is_uniform_scaled_by_length_and_width_and_only_in_training() -> None:
    embedding = torch.nn.Embedding(10, 64)
    plain = torch.nn.Embedding.from_pretrained(embedding.weight.detach().clone())
    add_noise(embedding, alpha=5.0)
    ids = torch.randint(0, 10, (4, 100))
    noise = (embedding(ids) - plain(ids)).detach()
    bound = 5.0 / math.sqrt(100 * 64)
    assert noise.abs().max() <= bound
    assert noise.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert torch.equal(embedding.eval()(ids), plain(ids))


def test_reachable_from_the_module_and_checked(toy_folder) -> None:
    ids = {"input_ids": torch.arange(3, 9)[None], "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    batch = {**ids, "labels": ids["input_ids"]}
    module = SFTModule(str(toy_folder), neftune_noise_alpha=10.0)
    module.configure_model()
    assert not torch.equal(module(batch).losses, module(batch).losses)
    module.eval()
    assert torch.equal(module(batch).losses, module(batch).losses)
    with pytest.raises(UserError, match="neftune_noise_alpha is 0"):
        add_noise(torch.nn.Embedding(2, 2), 0.0)
