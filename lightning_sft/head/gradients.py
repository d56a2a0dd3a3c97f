"""Where the gradients of one call are gathered: products add up here in a dtype that can hold the sum."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sft.head.tiles import Projection


class Gradients:
    """Gradients on the hidden states, the unembedding and its bias; each is None where nobody asks for it.

    Args:
        projection: the unembedding.
        hidden: (tokens, dim).
        need: whether hidden, weight and bias need a gradient.
    """

    def __init__(self, projection: Projection, hidden: Tensor, need: tuple[bool, ...]) -> None:
        exact, given = projection.exact, projection.given
        self.projection = projection
        self.given = hidden
        self.source = hidden.to(projection.weight.dtype)
        self.hidden = torch.zeros_like(hidden, dtype=exact) if need[0] else None
        self.weight = torch.zeros_like(given.weight, dtype=exact) if need[1] else None
        self.bias = torch.zeros_like(given.bias, dtype=exact) if need[2] and given.bias is not None else None

    def add_tile(self, tokens: Tensor | slice, tile: Tensor, factor: Tensor | None, start: int) -> None:
        """Add the products of one tile of logit gradients.

        Args:
            tokens: which tokens the rows of the tile are.
            tile: logit gradients up to the factor, zero at the targets, (rows, tile), in the dtype of the products.
            factor: of each row, (rows,), or None for 1.
            start: the tile's first candidate.
        """
        stop = start + tile.shape[1]
        if self.hidden is not None:
            product = (tile @ self.projection.weight[start:stop]).to(self.hidden.dtype)
            self.hidden[tokens] += product if factor is None else product.mul_(factor[:, None])
        if self.weight is not None:
            source = self.source[tokens]
            if factor is not None:
                source = (source * factor[:, None]).to(tile.dtype)
            rows = self.weight[start:stop]
            if rows.dtype == tile.dtype:
                rows.addmm_(tile.T, source)
            else:
                rows.add_(tile.T @ source)
        if self.bias is not None:
            column = tile.to(self.bias.dtype)
            self.bias[start:stop] += column.sum(0) if factor is None else factor @ column

    def add_targets(self, tokens: Tensor | slice, targets: Tensor, pull: Tensor, rows: Tensor) -> None:
        """Add the targets' own part, which never meets a rounded product.

        Args:
            tokens: which tokens.
            targets: their targets, (rows,).
            pull: gradient on the bare products of the targets, (rows,).
            rows: the targets' rows of the unembedding, (rows, dim).
        """
        if self.hidden is not None:
            self.hidden[tokens] += rows * pull[:, None]
        if self.weight is not None:
            self.weight.index_add_(0, targets, (self.given[tokens] * pull[:, None]).to(self.weight.dtype))
        if self.bias is not None:
            self.bias.index_add_(0, targets, pull)
