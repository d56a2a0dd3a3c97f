"""How much of a device's speed a training step uses, from the model's own products alone."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

#: dense bf16 products of a GPU, in FLOP/s, by what its name holds; from the vendor's data sheets
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}

SHAPES = {
    "smollm2-135m": LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "llama-1b": LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}
"""Models with random weights: ``--model random:NAME``."""


def parameters(config: PreTrainedConfig) -> int:
    """Return the weights that multiply: all of them, a table that is only looked up apart."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    looked_up = 0 if config.tie_word_embeddings else model.get_input_embeddings().weight.numel()
    return sum(p.numel() for p in model.parameters()) - int(looked_up)


def model_flops(model: str, tokens: float, lora: bool) -> float:
    """Return the FLOPs of a step over real tokens: 6 a weight and token, 4 where the weights are frozen.

    Attention's own products are left out, and so is what is recomputed, as usual in this figure.
    """
    return (4 if lora else 6) * parameters(AutoConfig.from_pretrained(model)) * tokens


def utilisation(flops: float, seconds: float, accelerator: str) -> str:
    """Return TFLOP/s, and the share of the device's peak where that is known."""
    speed = f"{flops / seconds / 1e12:.3g}"
    name = torch.cuda.get_device_name() if accelerator == "cuda" else ""
    peak = next((value for part, value in PEAKS.items() if part in name), None)
    return speed if peak is None else f"{speed} ({flops / seconds / peak:.0%})"
