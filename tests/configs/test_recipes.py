"""Recipes: a toy of the same class and template family trains two steps, and what they state of memory is right."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from lightning_sft.data.encoding.encode import Encoder
from lightning_sft.data.reading.formats import to_example
from lightning_sft.models.adapters import add_adapter
from lightning_sft.models.beside_text import freeze_beside_text
from lightning_sft.models.reach import kinds_of
from tests.configs.families import FAMILIES, family_model, family_tokenizer, save_family
from tests.configs.shapes import (
    GIB,
    RECIPES,
    SHAPES,
    config_of,
    estimate,
    family_of,
    kind_of,
    memory_of,
    model_of,
    stated,
)
from tests.running import QUIET, run, run_folder

FILES = sorted(RECIPES.glob("*.yaml"))
LORA = [path for path in FILES if path.stem.endswith("_lora")]
#: fitted here; the others are fitted in the slow tests
FITTED = ("qwen3_lora", "gemma3_full", "gpt_oss_lora", "lfm2_full")
#: what a toy on one CPU has otherwise
HERE = [
    *QUIET,
    "--trainer.devices=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32-true",
    "--model.dtype=float32",
    "--data.batch_size=2",
    "--data.val_split=2",
    "--data.cache_dir=false",
    "--data.max_length=400",
    "--trainer.max_steps=2",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.val_check_interval=4",
]
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
DENSE = {*ATTENTION, "gate_proj", "up_proj", "down_proj"}
CONVOLUTION = {"q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"}
#: last names of the modules that a recipe's LoRA is put around
ADAPTED = {
    **dict.fromkeys(("llama", "qwen3", "gemma3", "mistral", "smollm3"), DENSE),
    "qwen3_5": {*DENSE, "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"},
    "gemma4": {*DENSE, "per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    **dict.fromkeys(("gpt_oss", "qwen3_moe"), ATTENTION),
    **dict.fromkeys(("lfm2", "lfm2_moe"), CONVOLUTION),
}


def settings_of(recipe: Path) -> dict[str, Any]:
    content = yaml.safe_load(recipe.read_text())
    assert isinstance(content, dict)
    return content


def test_recipes_are_those_of_the_page() -> None:
    page = (RECIPES.parents[1] / "docs/how_to/recipes.md").read_text()
    assert set(re.findall(r"`(\w+_(?:lora|full))`", page)) == {path.stem for path in FILES}
    large = {path.stem for path in LORA if memory_of(path) != 24}
    assert large == {"gpt_oss_lora", "qwen3_moe_lora"}  # they have more weights than that in 16 bits


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem not in FITTED)) for p in FILES],
    ids=lambda path: path.stem,
)
def test_it_trains_a_toy_of_its_class(recipe: Path, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "toy", kind_of(recipe), family_of(recipe))
    rows = [
        {"messages": [{"role": "user", "content": f"how many is {i}"}, {"role": "assistant", "content": f"it is {i}"}]}
        for i in range(10)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [f"--model.model_name_or_path={folder}", f"--data.train={tmp_path / 'rows.jsonl'}"]
    run("fit", [f"--config={recipe}", *HERE, *given])
    checkpoint = torch.load(run_folder(Path(f"runs/{recipe.stem}")) / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    clipped = ("_min", "_max")  # bounds of Gemma 4's towers, infinite in a new model
    assert all(value.isfinite().all() for name, value in checkpoint["state_dict"].items() if not name.endswith(clipped))


@pytest.mark.parametrize("recipe", FILES, ids=lambda path: path.stem)
def test_its_toy_has_the_kinds_of_layers_that_are_published(recipe: Path) -> None:
    published = config_of(model_of(recipe)).get_text_config()
    toy = family_model(kind_of(recipe)).config.get_text_config()
    for name in ("layer_types", "mlp_layer_types"):
        ours, theirs = getattr(toy, name, None), getattr(published, name, None)
        assert set(ours or ()) == set(theirs or ()), name
    assert (getattr(toy, "sliding_window", None) is None) == (getattr(published, "sliding_window", None) is None)


@pytest.mark.parametrize("recipe", FILES, ids=lambda path: path.stem)
def test_every_answer_and_its_end_are_trained_whatever_the_day(recipe: Path) -> None:
    name, variables = family_of(recipe), settings_of(recipe)["data"].get("template_kwargs")
    tokenizer, family = family_tokenizer(name), FAMILIES[name]
    said = [("user", "how many?"), ("assistant", "it is 4"), ("user", "and now?"), ("assistant", "5, I think")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    encoder = Encoder(tokenizer, template_kwargs=variables)
    encoded = encoder(to_example(row, "messages"))
    trained = tokenizer.decode(encoded.ids[encoded.trained])
    earlier = {"gpt_oss": "<|channel|>final<|message|>it is 4<|end|>"}.get(name, f"it is 4{family.end}")
    trained = re.sub(r"^ | (?=5)", "", trained)  # Mistral's answers begin with a space
    assert trained == f"{earlier}{family.before}5, I think{family.end}{family.closes}"
    assert encoded.ids[encoded.trained][-1] == tokenizer.eos_token_id
    assert "Reason first" not in tokenizer.decode(encoded.ids), "answers without reasoning under a call for it"
    assert not encoder.template.tells_the_date


@pytest.mark.parametrize("recipe", LORA, ids=lambda path: path.stem)
def test_its_adapter_is_put_where_text_passes(recipe: Path) -> None:
    kind = kind_of(recipe)
    model = family_model(kind).train()
    freeze_beside_text(model)
    targets = settings_of(recipe)["model"]["adapter"]["init_args"]["target_modules"]
    adapted = add_adapter(model, LoraConfig(r=2, target_modules=targets))
    names = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    assert {name.rpartition(".")[2] for name in names} == ADAPTED[kind]
    assert not [name for name in names if "vision" in name or "audio" in name]
    ids = torch.randint(5, 200, (1, 12), generator=torch.Generator().manual_seed(0))
    adapted(input_ids=ids, labels=ids).loss.backward()
    missing = [name for name, p in adapted.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, kinds_of(missing)


@pytest.mark.parametrize("recipe", FILES, ids=lambda path: path.stem)
def test_it_says_what_it_is_for_and_what_it_needs(recipe: Path) -> None:
    text, content, memory = recipe.read_text(), settings_of(recipe), memory_of(recipe)
    assert f"# lightning fit --config configs/recipe/{recipe.name} " in text
    assert f"# lightning estimate --config configs/recipe/{recipe.name} --device-memory {memory}\n" in text
    assert f"with rows of {content['data']['max_length']} tokens" in text
    found = stated(recipe)
    assert next(iter(found)) == model_of(recipe)
    assert all(0 < gib < memory and fits for gib, fits in found.values())
    assert ("Give the others by" in text) == (len(found) > 1)
    trainer = content["trainer"]
    if recipe in LORA:
        assert trainer["devices"] == 1
        assert content["data"]["batch_size"] * trainer["accumulate_grad_batches"] == 16
    else:
        assert trainer["devices"] == trainer["strategy"]["init_args"]["data_parallel_size"] == 8
        assert f"# {8 * trainer['accumulate_grad_batches']} rows a step" in text
        assert "adapter" not in content["model"]


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    published = SHAPES[name][2]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
    count = sum(p.numel() for p in model.parameters())
    digits = len(published.partition(".")[2]) if isinstance(published, str) else 0
    assert (f"{count / 1e9:.{digits}f}" if isinstance(published, str) else count) == published


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.stem not in ("lfm2_lora", "lfm2_moe_lora"))) for p in FILES],
    ids=lambda path: path.stem,
)
def test_its_estimates_are_what_the_verb_says(recipe: Path, tmp_path: Path) -> None:
    for name, (gib, fits) in stated(recipe).items():
        found = estimate(recipe, name, tmp_path)
        assert found["peak"] / GIB == pytest.approx(gib, rel=0.02, abs=0.06), name
        assert found["fits"] == fits
