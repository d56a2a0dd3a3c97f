"""Towers that no row of text enters: found, frozen, left out by adapters, and no obstacle to several ranks."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from lightning_sft.models.beside_text import beside_text, freeze_beside_text
from lightning_sft.models.targets import adaptable_weights, resolve_targets
from tests.configs.families import family_model
from tests.distributed.fits import last_checkpoint
from tests.distributed.ranks import two_ranks
from tests.models.zoo import save_tiny, tiny_model
from tests.running import toy_arguments, write_rows

TOWERS = {
    "gemma3": {"model.vision_tower", "model.multi_modal_projector"},
    "gemma4": {"model.vision_tower", "model.audio_tower", "model.embed_vision", "model.embed_audio"},
    "got_ocr2": {"model.vision_tower", "model.multi_modal_projector"},
    "git": {"git.image_encoder"},
    "qwen3_5": set(),  # the class of its language part alone
    "llama": set(),
    "bart": set(),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_what_is_found_gets_no_gradient_and_the_rest_does(kind: str) -> None:
    model = family_model(kind) if kind == "gemma4" else tiny_model(kind)
    assert set(beside_text(model)) == TOWERS[kind]
    ids = torch.randint(5, 200, (1, 12), generator=torch.Generator().manual_seed(0))
    model.train()(input_ids=ids, use_cache=False).logits.float().sum().backward()
    beside = tuple(f"{name}." for name in TOWERS[kind])
    assert not [n for n, p in model.named_parameters() if n.startswith(beside) and p.grad is not None]
    if kind not in ("git", "bart"):  # their projections and cross-attention are not known
        assert not [n for n, p in model.named_parameters() if not n.startswith(beside or "-") and p.grad is None]


@pytest.mark.parametrize("word", ["all-linear", "everything"])
def test_adapters_and_their_reach_leave_towers_out(word: str) -> None:
    model = tiny_model("gemma3")
    frozen = freeze_beside_text(model)
    assert {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad} == {
        name.split(".")[1] for name in frozen
    }
    resolved = resolve_targets(LoraConfig(target_modules=word), model)
    assert len(resolved.target_modules) == 14  # seven projections of two layers
    assert all(name.startswith("model.language_model.") for name in resolved.target_modules)
    assert set(adaptable_weights(model)) == {f"{name}.weight" for name in resolved.target_modules}


@pytest.mark.ranks
def test_a_model_with_towers_trains_and_resumes_on_two_ranks(tmp_path: Path) -> None:
    """DDP waits for the gradient of whatever trains, and shards are looked up by name."""
    model, rows = save_tiny(tmp_path / "toy", "gemma3"), write_rows(tmp_path / "rows.jsonl", 16)
    sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": True}
    shards = json.dumps({"class_path": "ModelParallelStrategy", "init_args": sizes})
    how = {"data__batch_size": 2, "data__cache_dir": "false", "trainer__devices": 2}

    def line(strategy: str, root: str, steps: int, *more: str) -> list[str]:
        given = {**how, "trainer__strategy": strategy, "trainer__default_root_dir": root, "trainer__max_steps": steps}
        return ["fit", *toy_arguments(Path(model), rows, **given), *more]

    lora = ["--model.adapter=peft.LoraConfig", "--model.adapter.target_modules=all-linear"]
    lines = [line("ddp", "lora", 3, *lora), line(shards, "full", 2), line(shards, "full", 4, "--ckpt_path=last")]
    two_ranks("work:command_lines", tmp_path, lines=lines)
    assert last_checkpoint(tmp_path / "lora")["global_step"] == 3
    assert last_checkpoint(tmp_path / "full")["global_step"] == 4
