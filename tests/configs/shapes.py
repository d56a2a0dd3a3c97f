"""Shapes of published models, as their config.json has them, and writing what the recipes state of their memory.

    python -m tests.configs.shapes [NAME ...]     # write the estimates into configs/recipe/, of all or of some

The number of parameters that a shape gives is held against the published one.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from lightning_sft.cli.entry import main

RECIPES = Path(__file__).parents[2] / "configs/recipe"
GIB = 2**30
#: a line of a recipe's head: a model, its peak, and whether it fits
STATED = re.compile(r"^#   (?P<model>\S+/\S+) +(?P<gib>[\d.]+) GiB, (?P<fits>fits|does not fit)$", re.M)


def _decoder(layers: int, hidden: int, heads: int, inner: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    own = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return {**own, "intermediate_size": inner, "vocab_size": vocabulary, "num_key_value_heads": 8, **more}


TIED, APART, WIDE = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}, {"head_dim": 128}
_LFM = {"full_attn_idxs": [2, 5, 8, 10, 12, 14]}
_ATTENDS = (2, 6, 10, 14, 18, 21)  # of LFM2-8B-A1B
_GEMMA3 = {"head_dim": 256, "sliding_window": 1024}
_GEMMA4 = {"head_dim": 256, "global_head_dim": 512, "sliding_window": 512, "final_logit_softcapping": 30.0}
_SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "image_size": 896, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
_TOWERS: dict[str, Any] = {"vision_config": {}, "audio_config": {}}  # Gemma 4's own defaults

#: published name -> (model type, fields that differ from the type's defaults, published number of parameters: exact, or
#: in billions with the digits of its page)
SHAPES: dict[str, tuple[str, dict[str, Any], int | str]] = {
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", _decoder(16, 2048, 32, 8192, 128256, **TIED), 1_235_814_400),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", _decoder(28, 3072, 24, 8192, 128256, **TIED, **WIDE), 3_212_749_824),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", _decoder(32, 4096, 32, 14336, 128256, **APART), 8_030_261_248),
    "Qwen/Qwen3-0.6B": ("qwen3", _decoder(28, 1024, 16, 3072, 151936, **TIED, **WIDE), 596_049_920),
    "Qwen/Qwen3-4B": ("qwen3", _decoder(36, 2560, 32, 9728, 151936, **TIED, **WIDE), 4_022_468_096),
    "Qwen/Qwen3-8B": ("qwen3", _decoder(36, 4096, 32, 12288, 151936, **APART, **WIDE), 8_190_735_360),
    "Qwen/Qwen3-14B": ("qwen3", _decoder(40, 5120, 40, 17408, 151936, **APART, **WIDE), 14_768_307_200),
    # transformers documents its defaults as this model's; AutoModelForCausalLM takes the language part of it
    "Qwen/Qwen3.5-9B": ("qwen3_5", {"text_config": {}, "vision_config": {}}, "8.95"),
    "google/gemma-3-1b-it": (
        "gemma3_text",
        _decoder(26, 1152, 4, 6912, 262144, head_dim=256, sliding_window=512) | {"num_key_value_heads": 1},
        999_885_952,
    ),
    "google/gemma-3-4b-it": (
        "gemma3",
        {
            "text_config": _decoder(34, 2560, 8, 10240, 262208, **_GEMMA3) | {"num_key_value_heads": 4},
            "vision_config": _SIGLIP,
        },
        4_300_079_472,
    ),
    "google/gemma-3-12b-it": (
        "gemma3",
        {"text_config": _decoder(48, 3840, 16, 15360, 262208, **_GEMMA3), "vision_config": _SIGLIP},
        12_187_325_040,
    ),
    "google/gemma-4-E2B-it": (
        "gemma4",
        {
            "text_config": _decoder(35, 1536, 8, 6144, 262144, **_GEMMA4)
            | {"num_key_value_heads": 1, "num_kv_shared_layers": 20, "use_double_wide_mlp": True}
            | {"layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7},
            **_TOWERS,
        },
        "5.1",
    ),
    "google/gemma-4-E4B-it": (
        "gemma4",
        {
            "text_config": _decoder(42, 2560, 8, 10240, 262144, **_GEMMA4)
            | {"num_key_value_heads": 2, "num_kv_shared_layers": 18},
            **_TOWERS,
        },
        "8",
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": (
        "mistral",
        _decoder(32, 4096, 32, 14336, 32768, sliding_window=None),
        7_248_023_552,
    ),
    "mistralai/Ministral-8B-Instruct-2410": (
        "mistral",
        _decoder(36, 4096, 32, 12288, 131072, sliding_window=None, **WIDE),
        8_019_808_256,
    ),
    "microsoft/Phi-4-mini-instruct": ("phi3", _decoder(32, 3072, 24, 8192, 200064, **TIED), 3_836_021_760),
    "microsoft/phi-4": ("phi3", _decoder(40, 5120, 40, 17920, 100352) | {"num_key_value_heads": 10}, 14_659_507_200),
    "openai/gpt-oss-20b": (
        "gpt_oss",
        _decoder(24, 2880, 64, 2880, 201088, head_dim=64, num_local_experts=32, num_experts_per_tok=4)
        | {"quantization_config": {"quant_method": "mxfp4"}},
        20_914_757_184,
    ),
    "LiquidAI/LFM2-350M": ("lfm2", _decoder(16, 1024, 16, 6656, 65536, **_LFM), 354_483_968),
    "LiquidAI/LFM2-1.2B": ("lfm2", _decoder(16, 2048, 32, 12288, 65536, **_LFM), 1_170_340_608),
    "LiquidAI/LFM2-8B-A1B": (
        "lfm2_moe",
        _decoder(24, 2048, 32, 7168, 65536, moe_intermediate_size=1792, num_experts=32, num_experts_per_tok=4)
        | {"layer_types": ["full_attention" if i in _ATTENDS else "conv" for i in range(24)], "num_dense_layers": 2},
        8_339_929_856,
    ),
    "HuggingFaceTB/SmolLM3-3B": (
        "smollm3",
        _decoder(36, 2048, 16, 11008, 128256, **TIED) | {"num_key_value_heads": 4},
        3_075_098_624,
    ),
    "Qwen/Qwen3-30B-A3B": (
        "qwen3_moe",
        _decoder(48, 2048, 32, 6144, 151936, **APART, **WIDE)
        | {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "num_key_value_heads": 4},
        30_532_122_624,
    ),
}


def config_of(name: str) -> Any:
    """The configuration of a published model."""
    kind, sizes, _ = SHAPES[name]
    plain = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 8192}
    return AutoConfig.for_model(kind, **({} if "text_config" in sizes else plain), **sizes)


def kind_of(recipe: Path) -> str:
    """The type of the model that a recipe names."""
    return SHAPES[model_of(recipe)][0]


def family_of(recipe: Path) -> str:
    """Who a recipe's model writes its turns like: others of its type, but for one."""
    return "phi4_mini" if model_of(recipe) == "microsoft/Phi-4-mini-instruct" else kind_of(recipe)


def model_of(recipe: Path) -> str:
    """The model that a recipe names."""
    name = yaml.safe_load(recipe.read_text())["model"]["model_name_or_path"]
    assert isinstance(name, str)
    return name


def memory_of(recipe: Path) -> int:
    """The GiB of a device that a recipe is written for."""
    found = re.search(r"^# lightning estimate .*--device-memory (\d+)$", recipe.read_text(), re.M)
    assert found is not None
    return int(found[1])


def stated(recipe: Path) -> dict[str, tuple[float, bool]]:
    """What a recipe states of each model: GiB, and whether it fits."""
    found = STATED.finditer(recipe.read_text())
    return {match["model"]: (float(match["gib"]), match["fits"] == "fits") for match in found}


def estimate(recipe: Path, name: str, folder: Path) -> dict[str, Any]:
    """What the verb says of a recipe with the shape of a published model, in bytes."""
    place = folder / name.replace("/", "_")
    config_of(name).save_pretrained(place)
    given = [f"--config={recipe}", f"--model.model_name_or_path={place}", f"--device-memory={memory_of(recipe)}"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(["estimate", *given, "--json=true"])
    found = json.loads(out.getvalue()[out.getvalue().index("{") :])
    assert isinstance(found, dict)
    return found


def write(recipe: Path, folder: Path) -> None:
    """Write a recipe's estimates into it."""

    def line(match: re.Match[str]) -> str:
        found = estimate(recipe, match["model"], folder)
        return f"#   {match['model']:<36} {found['peak'] / GIB:4.1f} GiB, {'fits' if found['fits'] else 'does not fit'}"

    recipe.write_text(STATED.sub(line, recipe.read_text()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        for path in sorted(RECIPES.glob("*.yaml")):
            if not sys.argv[1:] or path.stem in sys.argv[1:]:
                write(path, Path(made))
                print(path.name, stated(path), flush=True)
