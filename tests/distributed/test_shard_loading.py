"""A model loaded shard by shard is, to the last bit, the one that each rank used to load whole."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from lightning_sft.models.adapters import add_adapter
from lightning_sft.models.checkpoint_tensors import NotByShards
from lightning_sft.models.loading import load_causal_lm
from lightning_sft.models.shard_loading import ShardLoading
from tests.distributed.ranks import some_ranks, two_ranks
from tests.models.zoo import save_tiny
from tests.toys import save_toy, toy_model, toy_tokenizer

WEIGHTS = "model.safetensors"
NEW = [f"<{letter}>" for letter in "abcdefg"]  # the toys have four rows to spare


def rewritten(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a model's folder with other tensors."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def in_many_files(folder: Path) -> Path:
    toy_model().save_pretrained(folder, max_shard_size="20KB")
    toy_tokenizer().save_pretrained(folder)
    return folder


def as_pickle(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return folder


def cases(place: Path) -> dict[str, dict[str, Any]]:
    """Settings of fits, by what is special about them."""
    tied, apart = save_toy(place / "tied"), save_toy(place / "apart", tie_word_embeddings=False)

    def untie(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2

    def only_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    lora: dict[str, Any] = {"lora": {}}
    half = {"dtype": "bfloat16"}
    found: dict[str, dict[str, Any]] = {
        "tied": {"model": tied},
        "tied, bfloat16, lora": {"model": tied, **half, **lora},
        "apart, lora": {"model": apart, **lora},
        "layers that are no nn.Linear": {"model": save_toy(place / "gpt2", "gpt2"), **half},
        "soft-capping": {"model": save_toy(place / "gemma2", "gemma2"), **half},
        "two kinds of rotary embeddings": {"model": save_tiny(place / "gemma3", "gemma3_text"), **lora},
        "a tower for images": {"model": save_tiny(place / "gemma3_images", "gemma3")},
        "a tower for images, lora": {"model": save_tiny(place / "gemma3_images_again", "gemma3"), **lora},
        "stacked experts": {"model": save_tiny(place / "qwen3_moe", "qwen3_moe"), **half},
        "stacked experts, lora": {"model": save_tiny(place / "mixtral", "mixtral"), **lora},
        "a buffer of the checkpoint": {"model": save_tiny(place / "deepseek", "deepseek_v3")},
        "many files": {"model": in_many_files(place / "many")},
        "tied by the configuration alone": {"model": rewritten(tied, place / "differ", untie)},
        "the head alone is stored": {"model": rewritten(tied, place / "head", only_head)},
        "new rows": {"model": tied, "add_special_tokens": NEW},
        "new rows, lora": {
            "model": apart,
            "add_special_tokens": NEW,
            "lora": {"modules_to_save": ["embed_tokens", "lm_head"]},
        },
        "a copy to compare with": {"model": apart, "objective": "ASFT"},
        "dora": {"model": tied, "lora": {"use_dora": True}},
        "pissa": {"model": tied, "lora": {"init_lora_weights": "pissa"}},
        "pickle": {"model": as_pickle(tied, place / "pickle")},
        "random": {"model": tied, "init": "random"},
    }
    return {name: {**settings, "model": str(settings["model"])} for name, settings in found.items()}


#: what is loaded whole all the same, and why
WHOLE = {
    "dora": r"its adapter makes .*lora_magnitude_vector.* of weights",
    "pissa": r"its adapter \(LoraConfig\) may begin with what it makes of the weights",
    "pickle": "its weights are not in safetensors files",
    "random": "its weights are drawn at random",
}


@pytest.mark.ranks
def test_it_is_the_model_that_was_loaded_whole(tmp_path: Path) -> None:
    given = cases(tmp_path)
    for found in two_ranks("loading:all_both_ways", tmp_path, cases=given):
        assert {name: rank["differences"] for name, rank in found.items() if rank["differences"]} == {}
        refusals = {name: rank["refusal"] for name, rank in found.items() if rank["refusal"]}
        assert refusals.keys() == WHOLE.keys()
        for name, part in WHOLE.items():
            assert re.search(part, refusals[name])
        tied = {name for name, rank in found.items() if rank["facts"]["tied"]}
        assert "tied" in tied
        assert "the head alone is stored" in tied
        assert "tied by the configuration alone" not in tied


@pytest.mark.ranks
def test_layers_split_over_ranks_and_sharded_over_others(tmp_path: Path) -> None:
    model = str(save_toy(tmp_path / "qwen3", "qwen3"))
    given = {"both": {"model": model, "sizes": {"data_parallel_size": 2, "tensor_parallel_size": 2}}}
    for found in some_ranks(4, "loading:all_both_ways", tmp_path, cases=given):
        assert found["both"]["differences"] == []
        assert found["both"]["refusal"] is None


def without_weights(folder: Path) -> tuple[Any, ShardLoading]:
    loading = ShardLoading()
    return load_causal_lm(str(folder), shards=loading), loading


def test_a_model_without_weights_has_its_buffers_and_no_weight(toy_folder: Path) -> None:
    whole = load_causal_lm(str(toy_folder))
    model, _ = without_weights(toy_folder)
    assert all(p.is_meta for p in model.parameters())
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    buffers = dict(model.named_buffers())
    assert buffers.keys() == dict(whole.named_buffers()).keys() != set()
    assert all(torch.equal(buffers[name], value) for name, value in whole.named_buffers())
    assert {n: (p.shape, p.dtype) for n, p in model.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in whole.named_parameters()
    }
    assert "meta" not in {p.device.type for p in load_causal_lm(str(toy_folder)).parameters()}, "transformers as it was"


def test_an_adapter_draws_what_it_draws_beside_weights(toy_folder: Path) -> None:
    drawn = []
    for with_weights in (True, False):
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules="all-linear")
        if with_weights:
            adapted = add_adapter(load_causal_lm(str(toy_folder)), config)
        else:
            model, loading = without_weights(toy_folder)
            with loading.standing_in(model):
                adapted = add_adapter(model, config)
            loading.check(adapted)
        drawn.append({n: p for n, p in adapted.named_parameters() if "lora_" in n})
        base = [p for n, p in adapted.named_parameters() if "lora_" not in n]
        assert all(p.is_meta is not with_weights and not p.requires_grad for p in base)
    assert drawn[0].keys() == drawn[1].keys()
    assert all(torch.equal(drawn[1][name], value) for name, value in drawn[0].items())


def test_a_weight_that_no_tensor_makes_is_told_before_anything_is_sharded(toy_folder: Path) -> None:
    model, loading = without_weights(toy_folder)
    model.extra = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(NotByShards, match=r"no tensor of its checkpoint makes extra\.weight"):
        loading.check(model)


@pytest.mark.parametrize(
    "name",
    ["transformers.core_model_loading.rename_source_key", "transformers.PreTrainedModel._load_pretrained_model"],
)
def test_another_version_of_transformers_loads_whole(
    name: str, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(name)
    with pytest.raises(NotByShards, match="this version of transformers loads models in another way"):
        without_weights(toy_folder)
