"""NEFTune: uniform noise on the input embeddings in training (Jain et al., arXiv 2310.05914)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sft.errors import UserError


class EmbeddingNoise:
    """Noise in [-alpha / sqrt(length * dim), +...] on the output of an embedding module while that trains.

    The length is a row's in a padded batch, padding included, and a document's own where rows lie end to end.

    Args:
        embeddings: returns (batch, length, dim).
        alpha: the paper's scale, 5 to 15 there.

    Raises:
        UserError: alpha is not positive.
    """

    def __init__(self, embeddings: nn.Module, alpha: float) -> None:
        if not alpha > 0:
            raise UserError(
                f"neftune_noise_alpha is {alpha}. Allowed: a positive number (5 to 15 in the paper), or null."
            )
        self.alpha = alpha
        self._lengths: Tensor | None = None
        embeddings.register_forward_hook(self._add)

    @contextlib.contextmanager
    def for_lengths(self, lengths: Tensor | None) -> Iterator[None]:
        """Add noise by each position's own length for as long as the context lasts.

        Args:
            lengths: (batch, length, 1); None for that of the rows.
        """
        self._lengths = lengths
        try:
            yield
        finally:
            self._lengths = None

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not module.training:
            return output
        length, dim = output.shape[-2:]
        if self._lengths is None:
            bound = self.alpha / math.sqrt(length * dim)
            return output + torch.empty_like(output).uniform_(-bound, bound)
        bounds = self.alpha * (self._lengths * dim).to(torch.promote_types(output.dtype, torch.float32)).rsqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * bounds.to(output.dtype)
