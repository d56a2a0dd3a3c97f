"""Two ways over the tokens: for objectives of logp alone, and for those that look at other tokens too."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_sft.head.checks import call_objective
from lightning_sft.head.run import HeadRun
from lightning_sft.head.sizes import reading_is_free
from lightning_sft.head.tiles import Chunk, factors, mask_targets
from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores


def logp_pass(run: HeadRun) -> Tensor:
    """Score each chunk, and make its gradient from s = -dL/dlogp while its exponentials are there. (tokens,)."""
    losses = torch.empty_like(run.logp)
    for span in run.spans():
        chunk, exponentials = run.score(span, keep=run.gradients is not None)
        losses[span], grad_logp = _losses(run.objective, run.scores(span), run.gradients is not None)
        if grad_logp is not None:
            _spread(run, span, chunk, exponentials, grad_logp)
    return losses


def _losses(objective: Objective, scores: TokenScores, grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return the losses, and s = -dL/dlogp if it is wanted and not constantly zero, both (tokens,)."""
    if not grad:
        return call_objective(objective, scores).detach(), None
    with torch.enable_grad():
        logp = scores.logp.detach().requires_grad_()
        losses = call_objective(objective, replace(scores, logp=logp))
        if not losses.requires_grad:
            return losses, None
        (slope,) = torch.autograd.grad(losses.sum(), logp, materialize_grads=True)
    return losses.detach(), -slope


def _spread(run: HeadRun, span: slice, chunk: Chunk, exponentials: Tensor, grad_logp: Tensor) -> None:
    """Turn a chunk's s into gradients. Tokens with s = 0 take no part in the products."""
    assert run.gradients is not None
    at_target = grad_logp * torch.expm1(chunk.logp) * chunk.slope
    run.gradients.add_targets(span, run.inputs.targets[span], at_target, chunk.target_rows)
    kept = _kept(run, grad_logp)
    tokens: Tensor | slice = span
    parts = list(factors(chunk, grad_logp, run.projection.given.scale))
    if kept is not None:
        if len(kept) == 0:
            return
        tokens = kept + span.start
        parts = [(start, factor[kept]) for start, factor in parts]
        some = run.workspace.take("kept", len(kept), run.projection.vocab, exponentials.dtype)
        exponentials = torch.index_select(exponentials, 0, kept, out=some)
    stops = [start for start, _ in parts[1:]] + [run.projection.vocab]
    for (start, factor), stop in zip(parts, stops, strict=True):
        run.gradients.add_tile(tokens, exponentials[:, start:stop], factor, start)


def _kept(run: HeadRun, grad_logp: Tensor) -> Tensor | None:
    """Return the tokens with s other than 0, (kept,), or None for all of them.

    How many they are is read from the device. On a GPU that keeps it waiting, so it is not asked under an objective
    that drops no token, where few would be left out.
    """
    if not reading_is_free(grad_logp.device) and run.objective.mask() == "all":
        return None
    kept = grad_logp.nonzero()[:, 0]
    return None if len(kept) == len(grad_logp) else kept


def batch_pass(run: HeadRun) -> Tensor:
    """Score everything, weigh it as a whole, then recompute the logits for the gradient. (tokens,).

    The second part has the vocabulary outside, so that each tile of the weight's gradient is summed while it is hot.
    """
    for span in run.spans():
        run.score(span, keep=False)
    losses, grad_logp = _losses(run.objective, run.scores(), run.gradients is not None)
    if grad_logp is None or run.gradients is None:
        return losses
    projection, gradients = run.projection, run.gradients
    block, tile = run.sizes.block, run.sizes.tile
    kept = _kept(run, grad_logp)
    blocks: list[Tensor | slice] = [slice(start, start + block) for start in range(0, len(grad_logp), block)]
    if kept is not None:
        blocks = list(kept.split(block))
    targets = run.inputs.targets
    z_target, slope, target_rows = projection.target(run.hidden, targets)
    partition = z_target - run.logp
    at_target = grad_logp * torch.expm1(run.logp) * slope
    gradients.add_targets(slice(None), targets, at_target, target_rows)
    grad_logp = grad_logp * projection.given.scale
    for start in range(0, projection.vocab, tile):
        weight = projection.weight[start : start + tile]
        rows = gradients.open_tile(start, start + tile)
        for tokens in blocks:
            x = run.hidden[tokens].to(weight.dtype)
            z = products = torch.mm(x, weight.T, out=run.workspace.take("products", len(x), len(weight), x.dtype))
            if z.dtype != run.accumulation_dtype:
                z = run.workspace.take("logits", len(x), len(weight), run.accumulation_dtype).copy_(products)
            capped = projection.apply_bias_scale_cap(z, start)
            mask_targets(z, targets[tokens], start)
            z.sub_(partition[tokens, None]).exp_().mul_(grad_logp[tokens, None])
            if capped is not None:
                z *= capped
            gradients.add_tile(tokens, products if z is products else products.copy_(z), None, start, rows)
        gradients.close_tile(start, rows)
    return losses
