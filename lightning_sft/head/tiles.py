"""One chunk of tokens against the vocabulary, tile by tile: log-probabilities first, then the gradient's products.

The target is kept exact (its logit an fp32 dot product) and apart from the others, whose logits are rounded by the
product: with L the others' logsumexp, logp = logsigmoid(z_target - L), and the gradient at the target is expm1(logp).
Nothing cancels for confident tokens, where the losses that weigh by p live.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_sft.head.types import Unembedding


@dataclass(frozen=True)
class Projection:
    """An unembedding made ready for products in one dtype.

    Attributes:
        given: the unembedding as given, detached; targets are read from it.
        weight: its weight in the dtype of the products, (vocab, dim).
        exact: dtype of everything that is no product: fp32, or float64 for float64 inputs.
    """

    given: Unembedding
    weight: Tensor
    exact: torch.dtype

    @property
    def vocab(self) -> int:
        """Number of candidates."""
        return int(self.weight.shape[0])

    def finish(self, logits: Tensor, start: int) -> Tensor | None:
        """Turn bare products, (tokens, tile), into logits, in place.

        Returns:
            The slope of the soft-capping, (tokens, tile), or None without one.
        """
        given = self.given
        if given.bias is not None:
            logits += given.bias[start : start + logits.shape[1]].to(self.exact)
        if given.scale != 1.0:
            logits *= given.scale
        if given.softcap is None:
            return None
        logits /= given.softcap
        logits.tanh_()
        slope = 1 - logits * logits
        logits *= given.softcap
        return slope

    def target(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return, for the targets, exact logits (tokens,), their slope in the bare product, and rows (tokens, dim)."""
        given = self.given
        rows = given.weight[targets].to(self.exact)
        logits = (hidden.to(self.exact) * rows).sum(-1)
        if given.bias is not None:
            logits += given.bias[targets].to(self.exact)
        logits *= given.scale
        slope = torch.full_like(logits, given.scale)
        if given.softcap is not None:
            capped = torch.tanh(logits / given.softcap)
            logits, slope = capped * given.softcap, slope * (1 - capped * capped)
        return logits, slope, rows


@dataclass(frozen=True)
class Chunk:
    """What the first pass over a chunk leaves for the second.

    Attributes:
        logp: log-probabilities of the targets, (tokens,).
        hit: whether the target is the strongest candidate, (tokens,).
        tops: for each tile, the maximum its exponentials are relative to, (tokens,).
        top: the last of them: the strongest competitor's logit, (tokens,).
        total: sum of the others' exponentials relative to ``top``, (tokens,).
        slope: d logit / d product of the target, (tokens,).
        target_rows: the targets' rows of the unembedding, (tokens, dim).
    """

    logp: Tensor
    hit: Tensor
    tops: list[Tensor]
    top: Tensor
    total: Tensor
    slope: Tensor
    target_rows: Tensor


def mask_targets(logits: Tensor, targets: Tensor, start: int) -> None:
    """Set the target's entry of each row to -inf, in place, where the tile that begins at ``start`` holds it."""
    width = logits.shape[1]
    local = targets - start
    index = local.clamp(0, width - 1)[:, None]
    inside = ((local >= 0) & (local < width))[:, None]
    logits.scatter_(1, index, torch.where(inside, float("-inf"), logits.gather(1, index)))


def score_chunk(projection: Projection, hidden: Tensor, targets: Tensor, tiles: list[Tensor], keep: bool) -> Chunk:
    """Score a chunk.

    Args:
        projection: the unembedding.
        hidden: (tokens, dim).
        targets: (tokens,).
        tiles: buffers that together cover the vocabulary, each (tokens, tile), in the dtype of the products; filled
            with the others' exponentials (times the slope of the soft-capping), zero at the targets.
        keep: whether the tiles are needed afterwards; if not, one buffer may stand for all.
    """
    x = hidden.to(projection.weight.dtype)
    tops: list[Tensor] = []
    # a finite floor, not -inf: a tile of nothing but the target would otherwise make inf - inf
    top = torch.full(targets.shape, torch.finfo(projection.exact).min, dtype=projection.exact, device=x.device)
    total = torch.zeros_like(top)
    start = 0
    for tile in tiles:
        torch.mm(x, projection.weight[start : start + tile.shape[1]].T, out=tile)
        z = tile.to(projection.exact)
        slope = projection.finish(z, start)
        mask_targets(z, targets, start)
        before, top = top, torch.maximum(top, z.amax(-1))
        tops.append(top)
        z.sub_(top[:, None]).exp_()
        total = total * (before - top).exp() + z.sum(-1)
        if slope is not None and keep:
            z *= slope
        if keep and z is not tile:
            tile.copy_(z)
        start += tile.shape[1]
    z_target, target_slope, rows = projection.target(hidden, targets)
    return Chunk(
        logp=logsigmoid(z_target - top - total.log()),
        hit=z_target >= top,
        tops=tops,
        top=top,
        total=total,
        slope=target_slope,
        target_rows=rows,
    )


def tile_factors(chunk: Chunk, pull: Tensor, scale: float) -> list[Tensor]:
    """Return, for each tile, the factor (tokens,) that turns its exponentials into the gradient on the bare products.

    Args:
        chunk: the scores.
        pull: s = -dL/dlogp, (tokens,).
        scale: the unembedding's factor on the logits.
    """
    others = -torch.expm1(chunk.logp) * pull * scale
    share = others / chunk.total.clamp_min(torch.finfo(others.dtype).tiny)
    return [share * (top - chunk.top).exp() for top in chunk.tops]
