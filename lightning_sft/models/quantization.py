"""Loading a frozen base in int8 or nf4 (QLoRA, Dettmers et al., arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch

from lightning_sft.errors import UserError

Quantization = Literal["int8", "nf4", "nf4-float32", "nf4-float16"]


def quantization_config(kind: Quantization) -> Any:
    """Return transformers' configuration of bitsandbytes.

    Args:
        kind: ``"int8"``, or ``"nf4"`` with quantised scales, which computes in bfloat16 unless a dtype follows.

    Raises:
        UserError: bitsandbytes is not installed, or cannot train with it here.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"quantization is {kind!r}, which needs bitsandbytes. Install it with pip install "
            '"lightning-sft[quantization]", or set quantization: null and dtype: bfloat16.'
        )
    if kind != "int8" and not torch.accelerator.is_available():
        raise UserError(
            f"quantization is {kind!r} without a GPU: bitsandbytes repacks nf4 weights on a CPU in evaluation, and "
            "has no gradient through them afterwards. Use quantization: int8, or null with dtype: bfloat16."
        )
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = getattr(torch, kind.partition("-")[2] or "bfloat16")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute
    )
