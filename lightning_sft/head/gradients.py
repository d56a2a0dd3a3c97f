"""Accumulators of one call's gradients, in a dtype that can hold the sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_sft.head.tiles import Projection
from lightning_sft.head.workspace import Workspace


class Gradients:
    """Gradients on the hidden states, the unembedding and its bias; each is None where it is not needed.

    Sums are kept in fp32 (float64 for float64 inputs): added up in bf16, the products of many chunks can lose more than
    the plain head does (docs/performance_log.md). Those of a few chunks do not, and need no second copy of the
    gradient. The targets' part, large and often of many tokens on one row, is apart from the products and exact until
    ``finish``.

    Args:
        projection: the unembedding.
        hidden: (tokens, dim).
        need: whether hidden, weight and bias need a gradient.
        few: whether so few products are added to each entry of the unembedding's gradient that bf16 can sum them.
        workspace: memory to work in.
        tile: candidates whose products with the hidden states are made at once.
    """

    def __init__(
        self,
        projection: Projection,
        hidden: Tensor,
        need: tuple[bool, ...],
        few: bool,
        workspace: Workspace,
        tile: int,
    ) -> None:
        accumulation_dtype, given = projection.accumulation_dtype, projection.given
        self._workspace, self._tile = workspace, tile
        self._projection = projection
        self._given = hidden
        self._source = hidden.to(projection.weight.dtype)
        self._grad_logp = torch.zeros(len(hidden), dtype=accumulation_dtype, device=hidden.device)
        # fp16 cannot hold a gradient that the loss scale has not met yet; bf16 has the range of fp32
        kept = torch.bfloat16 if few and given.weight.dtype == torch.bfloat16 else accumulation_dtype
        self.hidden = torch.zeros_like(hidden, dtype=accumulation_dtype) if need[0] else None
        self.weight = torch.zeros_like(given.weight, dtype=kept) if need[1] else None
        self.bias = (
            torch.zeros_like(given.bias, dtype=accumulation_dtype) if need[2] and given.bias is not None else None
        )

    def open_tile(self, start: int, stop: int) -> Tensor | None:
        """Return where the products of one tile of the unembedding add up, (tile, dim), or None without need."""
        if self.weight is None:
            return None
        rows = self.weight[start:stop]
        dtype = self._projection.accumulation_dtype
        return rows if rows.dtype == dtype else torch.zeros_like(rows, dtype=dtype)

    def close_tile(self, start: int, rows: Tensor | None) -> None:
        """Put a tile from ``open_tile`` in its place."""
        if self.weight is not None and rows is not None and rows.dtype != self.weight.dtype:
            self.weight[start : start + len(rows)] = rows

    def add_tile(
        self, tokens: Tensor | slice, tile: Tensor, factor: Tensor | None, start: int, rows: Tensor | None = None
    ) -> None:
        """Add the products of logit gradients, of one tile or more.

        Args:
            tokens: which tokens the rows of the tile are.
            tile: logit gradients up to the factor, zero at the targets, (rows, columns), in the dtype of the products.
            factor: of each row, (rows,), or None for 1.
            start: the first candidate.
            rows: where the unembedding's part goes, (columns, dim); None for its place in ``weight``.
        """
        stop = start + tile.shape[1]
        if self.hidden is not None:
            product = (tile @ self._projection.weight[start:stop]).to(self.hidden.dtype)
            self.hidden[tokens] += product if factor is None else product.mul_(factor[:, None])
        if self.weight is not None:
            source = self._source[tokens]
            if factor is not None:
                source = (source * factor[:, None]).to(tile.dtype)
            rows = self.weight[start:stop] if rows is None else rows
            for part, to in zip(tile.split(self._tile, 1), rows.split(self._tile), strict=True):
                if to.dtype == tile.dtype:
                    to.addmm_(part.T, source)
                else:
                    to.add_(
                        torch.mm(part.T, source, out=self._workspace.take("gradient", len(to), to.shape[1], tile.dtype))
                    )
        if self.bias is not None:
            column = tile.to(self.bias.dtype)
            self.bias[start:stop] += column.sum(0) if factor is None else factor @ column

    def add_targets(self, tokens: Tensor | slice, targets: Tensor, grad_logp: Tensor, rows: Tensor) -> None:
        """Add the targets' own part; the unembedding's comes with ``finish``.

        Args:
            tokens: which tokens.
            targets: their targets, (rows,).
            grad_logp: gradient on the bare products of the targets, (rows,).
            rows: the targets' rows of the unembedding, (rows, dim).
        """
        self._grad_logp[tokens] = grad_logp
        if self.hidden is not None:
            self.hidden[tokens] += rows * grad_logp[:, None]
        if self.bias is not None:
            self.bias.index_add_(0, targets, grad_logp)

    def finish(self, targets: Tensor) -> None:
        """Add the part of all targets, (tokens,), to the unembedding's gradient: one rounding for each row."""
        if self.weight is None:
            return
        parts = self._given * self._grad_logp[:, None]
        if self.weight.dtype == parts.dtype:
            self.weight.index_add_(0, targets, parts)
            return
        # equal targets side by side; how many differ is not asked, as that would wait for the device
        ordered, order = targets.sort()
        which = torch.empty_like(order).scatter_(0, order, nn.functional.pad(ordered.diff() != 0, (1, 0)).cumsum(0))
        rows = torch.zeros_like(parts).index_add_(0, which, parts)[which]
        rows += self.weight[targets]
        self.weight[targets] = rows.to(self.weight.dtype)  # what is written twice is the same
