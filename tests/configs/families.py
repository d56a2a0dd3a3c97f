"""Toys of the families that recipes are for: their own classes, small, with their way of writing turns, in short."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, PreTrainedModel, PreTrainedTokenizerFast

from tests.models.zoo import DELETED, shrunk, tiny_model
from tests.toys import toy_tokenizer

LOOP, LAST = "{% for m in messages %}", "{% endfor %}{% if add_generation_prompt %}"
ANSWERS = "{% if m.role == 'assistant' %}"
MODEL = "{{ 'model' if m.role == 'assistant' else m.role }}"


@dataclass(frozen=True)
class Family:
    """How a family writes turns.

    Attributes:
        template: what it writes, without tools.
        end: the token that closes an answer.
        tokens: its other special tokens.
        before: what the assistant writes before its last answer, if it has no reasoning.
        closes: the token behind the last answer, if the whole is closed by one of its own.
    """

    template: str
    end: str
    tokens: tuple[str, ...] = ()
    before: str = ""
    closes: str = ""


CHATML = Family(
    LOOP + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + LAST + "<|im_start|>assistant\n{% endif %}",
    "<|im_end|>",
)
#: reasoning is written behind the last question alone, empty or not
THINKS = LOOP + (
    "<|im_start|>{{ m.role }}\n" + ANSWERS + "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    "{{ m.content }}<|im_end|>\n"
)
#: the day stands in a system prompt that nobody asked for
TODAY = "Today: {{ strftime_now('%d %b %Y') }}\n"
FAMILIES = {
    "llama": Family(
        "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n" + TODAY + "<|eot_id|>" + LOOP
        + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
        + LAST + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>"),
    ),
    "qwen3": Family(THINKS + LAST + "<|im_start|>assistant\n{% endif %}", "<|im_end|>", (), "<think>\n\n</think>\n\n"),
    # its prompt opens the reasoning, so that the model has only to close it
    "qwen3_5": Family(
        THINKS + LAST + "<|im_start|>assistant\n<think>\n{% endif %}", "<|im_end|>", (), "\n</think>\n\n"
    ),
    "gemma3": Family(
        "{{ bos_token }}" + LOOP + f"<start_of_turn>{MODEL}\n" + "{{ m.content | trim }}<end_of_turn>\n" + LAST
        + "<start_of_turn>model\n{% endif %}",
        "<end_of_turn>", ("<start_of_turn>",),
    ),
    "gemma4": Family(
        "{{ bos_token }}" + LOOP + f"<|turn>{MODEL}\n" + "{{ m.content | trim }}<turn|>\n" + LAST
        + "<|turn>model\n{% endif %}",
        "<turn|>", ("<|turn>",),
    ),
    # an answer is closed by the end of the text, and no header stands before it
    "mistral": Family(
        "{{ bos_token }}" + LOOP + ANSWERS + " {{ m.content | trim }}</s>{% else %}[INST] {{ m.content }}[/INST]"
        "{% endif %}{% endfor %}",
        "</s>", ("[INST]", "[/INST]"),
    ),
    "phi3": Family(
        LOOP + "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>" + LAST
        + "<|im_start|>assistant<|im_sep|>{% endif %}",
        "<|im_end|>", ("<|im_sep|>",),
    ),
    "phi4_mini": Family(
        LOOP + "<|{{ m.role }}|>{{ m.content }}<|end|>" + LAST + "<|assistant|>{% else %}{{ eos_token }}{% endif %}",
        "<|end|>", ("<|user|>", "<|assistant|>"), closes="<|endoftext|>",
    ),
    # it is told whether to reason; its markers hold the header, too, which is not trained
    "smollm3": Family(
        "{% set thinks = enable_thinking is not defined or enable_thinking %}<|im_start|>system\n" + TODAY
        + "{{ 'Reason first.' if thinks else 'Answer.' }}<|im_end|>\n" + LOOP + ANSWERS
        + "{% generation %}<|im_start|>assistant\n{% if not thinks %}<think>\n\n</think>\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
        "{% endif %}" + LAST + "<|im_start|>assistant\n{% if not thinks %}<think>\n\n</think>\n{% endif %}{% endif %}",
        "<|im_end|>",
    ),
    # the last answer is closed by another token than those before
    "gpt_oss": Family(
        "<|start|>system<|message|>" + TODAY + "<|end|>" + LOOP
        + "<|start|>{{ m.role }}" + ANSWERS + "<|channel|>final{% endif %}<|message|>{{ m.content }}"
        "{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}" + LAST
        + "<|start|>assistant{% endif %}",
        "<|return|>", ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"), "<|channel|>final<|message|>",
    ),
    **dict.fromkeys(("lfm2", "lfm2_moe"), CHATML),
}  # fmt: skip
FAMILIES["qwen3_moe"] = FAMILIES["qwen3"]
#: these attend to whole rows as published; the zoo gives their classes windows
WHOLE_ROWS = {"use_sliding_window": False, "sliding_window": None, "layer_types": DELETED}
#: the upper layers take keys and values of those below, and have wider MLPs for it
SHARED: dict[str, Any] = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
SHARED["layer_types"] = ["sliding_attention", "full_attention"] * 2
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("mistral", "qwen3", "qwen3_moe"), WHOLE_ROWS),
    "gemma4": {"text_config": {"model_type": "gemma4_text", **SHARED}},
}
#: towers that a type's own toy is made without
TOWERS = {"gemma4": ("vision_config", "audio_config")}


def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The toy tokenizer with the special tokens and the chat template of a family."""
    family, tokenizer = FAMILIES[name], toy_tokenizer()
    new = [token for token in (family.end, *family.tokens) if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": new})
    tokenizer.eos_token, tokenizer.chat_template = family.closes or family.end, family.template
    return tokenizer


def family_model(kind: str) -> PreTrainedModel:
    """A tiny model of a family's class, with its towers."""
    config, towers = CONFIG_MAPPING[kind], {}
    for name in TOWERS.get(kind, ()):
        part = config.sub_configs[name]
        towers[name] = {**shrunk(part().to_dict()), "model_type": part.model_type}
    return tiny_model(kind, **towers, **AS_PUBLISHED.get(kind, {}))


def save_family(folder: Path, kind: str, family: str | None = None) -> Path:
    """Write a tiny model of a type as a Hugging Face folder, as its checkpoints are published.

    Args:
        folder: to write.
        kind: the model type.
        family: whose tokenizer it gets; that of its type by default.
    """
    family_model(kind).save_pretrained(folder)
    if kind == "gpt_oss":
        _pack_experts(folder)
    family_tokenizer(family or kind).save_pretrained(folder)
    return folder


def _pack_experts(folder: Path) -> None:
    """Put experts in mxfp4 in the place of plain ones: two values of 4 bits in a byte, a scale for 32 of them."""
    weights, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = weights.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        weights[f"{name}_blocks"] = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.full(shape, 127 - 5, dtype=torch.uint8)  # 2 to the power of -5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    place = folder / "config.json"
    config: dict[str, Any] = json.loads(place.read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    place.write_text(json.dumps(config))
