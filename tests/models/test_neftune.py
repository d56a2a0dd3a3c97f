import math

import numpy as np
import pytest
import torch

from lightning_sft import SFTModule
from lightning_sft.data.batches.collate import Collator, FlatCollator
from lightning_sft.data.storage.dataset import Row
from lightning_sft.errors import UserError
from lightning_sft.models.build import ModelSettings, build_scorer
from lightning_sft.models.neftune import EmbeddingNoise
from lightning_sft.objectives import NLL


def test_noise_is_uniform_scaled_by_length_and_width_and_only_in_training() -> None:
    embedding = torch.nn.Embedding(10, 64)
    plain = torch.nn.Embedding.from_pretrained(embedding.weight.detach().clone())
    EmbeddingNoise(embedding, alpha=5.0)
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
        EmbeddingNoise(torch.nn.Embedding(2, 2), 0.0)


def test_each_document_of_a_flat_batch_has_noise_of_its_own_length(toy_folder) -> None:
    lengths = [400, 4, 100]
    rows = [Row(np.arange(n) % 200, np.ones(n, bool), i, 0) for i, n in enumerate(lengths)]
    scorer = build_scorer(ModelSettings(str(toy_folder), neftune_noise_alpha=5.0), NLL(), 259, flat=True)
    assert scorer.flat_refusal is None
    embedding, seen = scorer.causal_lm.get_input_embeddings(), []
    embedding.register_forward_hook(
        lambda module, inputs, output: seen.append(output.detach() - module.weight[inputs[0]])
    )
    scorer(FlatCollator(0)(rows), NLL())
    scorer(Collator(0)(rows[1:]), NLL())
    flat, padded = (noise.detach() for noise in seen)
    for noise, n in zip(flat[0].split(lengths), lengths, strict=True):
        bound = 5.0 / math.sqrt(n * 32)
        assert 0.9 * bound < noise.abs().max() <= bound
    assert 0.9 < padded.abs().max() * math.sqrt(100 * 32) / 5.0 <= 1  # padded rows: the batch's length
