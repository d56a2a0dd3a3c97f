"""One chunk of tokens against the vocabulary, tile by tile: log-probabilities first, then the gradient's products.

The target is kept exact (its logit an fp32 dot product) and apart from the others, whose logits are rounded by the
product: with L the others' logsumexp, logp = logsigmoid(z_target - L), and the gradient at the target is expm1(logp).
Nothing cancels for confident tokens, where the losses that weigh by p live.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_sft.head.sizes import reading_is_free
from lightning_sft.head.types import Unembedding
from lightning_sft.head.workspace import Workspace

# How far a logit may exceed the base of the exponentials before the base moves. Where it stays, tiles share a factor,
# and their products are made at once. These types have the range for it; exponentials round the same whatever the base.
_SLACK = {torch.bfloat16: 32.0, torch.float32: 32.0, torch.float64: 32.0}


@dataclass(frozen=True)
class Projection:
    """An unembedding made ready for products in one dtype.

    Attributes:
        given: the unembedding as given, detached; targets are read from it.
        weight: its weight in the dtype of the products, (vocab, dim).
        accumulation_dtype: dtype of everything that is no product: fp32, or float64 for float64 inputs.
    """

    given: Unembedding
    weight: Tensor
    accumulation_dtype: torch.dtype

    @property
    def vocab(self) -> int:
        """Number of candidates."""
        return int(self.weight.shape[0])

    def apply_bias_scale_cap(self, logits: Tensor, start: int) -> Tensor | None:
        """Turn bare products, (tokens, tile), into logits, in place.

        Returns:
            The slope of the soft-capping, (tokens, tile), or None without one.
        """
        given = self.given
        if given.bias is not None:
            logits += given.bias[start : start + logits.shape[1]].to(self.accumulation_dtype)
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
        rows = given.weight[targets].to(self.accumulation_dtype)
        logits = (hidden.to(self.accumulation_dtype) * rows).sum(-1)
        if given.bias is not None:
            logits += given.bias[targets].to(self.accumulation_dtype)
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
        margin: logit of the target minus the strongest other candidate's, (tokens,).
        competitor: id of that candidate, (tokens,), -1 without one; None unless asked for.
        starts: first candidate of each tile.
        bases: for each tile, the logit that its exponentials are relative to, (tokens,).
        total: sum of the others' exponentials relative to the last base, (tokens,).
        slope: d logit / d product of the target, (tokens,).
        target_rows: the targets' rows of the unembedding, (tokens, dim).
    """

    logp: Tensor
    margin: Tensor
    competitor: Tensor | None
    starts: list[int]
    bases: list[Tensor]
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


def score_chunk(
    projection: Projection,
    hidden: Tensor,
    targets: Tensor,
    workspace: Workspace,
    tile: int,
    keep: bool,
    *,
    competitors: bool = False,
) -> tuple[Chunk, Tensor]:
    """Score a chunk.

    Args:
        projection: the unembedding.
        hidden: (tokens, dim).
        targets: (tokens,).
        workspace: memory to work in.
        tile: candidates that the elementwise part works on at once.
        keep: whether the exponentials are needed afterwards.
        competitors: whether to look for the strongest candidate beside each target, and not for its logit alone.

    Returns:
        The scores and, if they are kept, the others' exponentials (times the slope of the soft-capping), zero at the
        targets, (tokens, vocab) in the dtype of the products; they are void with the next chunk.
    """
    x = hidden.to(projection.weight.dtype)
    slack = _SLACK.get(x.dtype, 0.0)
    # a finite floor, not -inf: a tile of nothing but the target would otherwise make inf - inf
    dtype = projection.accumulation_dtype
    top = torch.full(targets.shape, torch.finfo(dtype).min, dtype=dtype, device=x.device)
    base, total = top, torch.zeros_like(top)
    competitor = torch.full_like(targets, -1) if competitors else None
    starts, bases = list(range(0, projection.vocab, tile)), []
    buffer = workspace.take("products", len(x), projection.vocab if keep else tile, x.dtype)
    if keep:
        torch.mm(x, projection.weight.T, out=buffer)
    for start in starts:
        rows = projection.weight[start : start + tile]
        products = buffer[:, start : start + tile] if keep else torch.mm(x, rows.T, out=buffer[:, : len(rows)])
        z = products
        if z.dtype != projection.accumulation_dtype:
            z = workspace.take("logits", len(x), len(rows), projection.accumulation_dtype).copy_(products)
        slope = projection.apply_bias_scale_cap(z, start)
        mask_targets(z, targets, start)
        peak = z.amax(-1)
        if competitor is not None:
            # An argmax costs many times the maximum on a CPU, and few tiles hold a higher candidate than those before.
            higher = (peak > top).nonzero()[:, 0]
            competitor[higher] = z[higher].argmax(-1) + start
        top = torch.maximum(top, peak)
        before, base = base, torch.where(peak > base + slack, peak, base)
        bases.append(base)
        z.sub_(base[:, None]).exp_()
        total = total * (before - base).exp() + z.sum(-1)
        if slope is not None and keep:
            z *= slope
        if keep and z is not products:
            products.copy_(z)
    z_target, target_slope, target_rows = projection.target(hidden, targets)
    chunk = Chunk(
        logp=logsigmoid(z_target - base - total.log()),
        margin=z_target - top,
        competitor=competitor,
        starts=starts,
        bases=bases,
        total=total,
        slope=target_slope,
        target_rows=target_rows,
    )
    return chunk, buffer


def factors(chunk: Chunk, grad_logp: Tensor, scale: float) -> Iterator[tuple[int, Tensor]]:
    """Yield the factors (tokens,) that turn exponentials into the gradient on the bare products.

    Args:
        chunk: the scores.
        grad_logp: s = -dL/dlogp, (tokens,).
        scale: the unembedding's factor on the logits.

    Yields:
        The first candidate that a factor is for, and the factor; it holds until the next one.
    """
    others = -torch.expm1(chunk.logp) * grad_logp * scale
    share = others / chunk.total.clamp_min(torch.finfo(others.dtype).tiny)
    bases = torch.stack(chunk.bases)
    moved = [True] * len(bases)
    if reading_is_free(bases.device):  # neighbouring tiles of one base share their products
        moved = [True, *(bases[1:] != bases[:-1]).any(-1).tolist()]
    for start, base, new in zip(chunk.starts, bases, moved, strict=True):
        if new:
            yield start, share * (base - bases[-1]).exp()
