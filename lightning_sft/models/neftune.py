"""NEFTune: uniform noise on the input embeddings in training (Jain et al., arXiv 2310.05914)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sft.errors import UserError


def add_noise(embeddings: nn.Module, alpha: float) -> None:
    """Let an embedding module add noise in [-alpha / sqrt(length * dim), +...] to its output while it trains.

    Args:
        embeddings: returns (batch, length, dim).
        alpha: the paper's scale, 5 to 15 there.

    Raises:
        UserError: alpha is not positive.
    """
    if not alpha > 0:
        raise UserError(f"neftune_noise_alpha is {alpha}. Allowed: a positive number (5 to 15 in the paper), or null.")

    def noisy(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not module.training:
            return output
        bound = alpha / math.sqrt(output.shape[-2] * output.shape[-1])
        return output + torch.empty_like(output).uniform_(-bound, bound)

    embeddings.register_forward_hook(noisy)
