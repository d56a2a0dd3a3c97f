"""The three ways over the tokens, one for each thing that an objective may read."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_sft.head.checks import call_objective
from lightning_sft.head.run import TILE, Run
from lightning_sft.head.tiles import Chunk, mask_target, tile_factors
from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores

ROWS_BYTES = 4 << 20  # of logits that autograd works on at once for objectives of a row: what a cache holds


def logp_pass(run: Run) -> Tensor:
    """Score each chunk, and make its gradient from s = -dL/dlogp while its exponentials are there. (tokens,)."""
    losses = torch.empty_like(run.logp)
    for span in run.spans():
        chunk, tiles = run.score(span, keep=run.gradients is not None)
        losses[span], pull = _losses(run.objective, run.scores(span), run.gradients is not None)
        if pull is not None:
            _spread(run, span, chunk, tiles, pull)
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


def _spread(run: Run, span: slice, chunk: Chunk, tiles: list[Tensor], pull: Tensor) -> None:
    """Turn a chunk's s into gradients. Tokens with s = 0 take no part in the products."""
    assert run.gradients is not None
    at_target = pull * torch.expm1(chunk.logp) * chunk.slope
    run.gradients.add_targets(span, run.inputs.targets[span], at_target, chunk.target_rows)
    kept = pull.nonzero()[:, 0]
    some = len(kept) < len(pull)
    tokens = kept + span.start if some else span
    if len(kept) == 0:
        return
    start = 0
    for tile, factor in zip(tiles, tile_factors(chunk, pull, run.projection.given.scale), strict=True):
        if some:
            run.gradients.add_tile(tokens, tile[kept], factor[kept], start)
        else:
            run.gradients.add_tile(tokens, tile, factor, start)
        start += tile.shape[1]


def batch_pass(run: Run) -> Tensor:
    """Score everything, weigh it as a whole, then recompute the logits for the gradient. (tokens,).

    The second part has the vocabulary outside, so that each tile of the weight's gradient is summed while it is hot.
    """
    for span in run.spans():
        run.score(span, keep=False)
    losses, pull = _losses(run.objective, run.scores(), run.gradients is not None)
    if pull is None or run.gradients is None:
        return losses
    projection, hidden, targets = run.projection, run.hidden, run.inputs.targets
    z_target, slope, rows = projection.target(hidden, targets)
    run.gradients.add_targets(slice(None), targets, pull * torch.expm1(run.logp) * slope, rows)
    partition = z_target - run.logp
    for start in range(0, projection.vocab, TILE):
        for span in run.spans():
            kept = pull[span].nonzero()[:, 0] + span.start
            if len(kept) == 0:
                continue
            z = (hidden[kept].to(projection.weight.dtype) @ projection.weight[start : start + TILE].T).to(run.exact)
            capped = projection.finish(z, start)
            mask_target(z, targets[kept], start, float("-inf"))
            z.sub_(partition[kept, None]).exp_().mul_((pull[kept] * projection.given.scale)[:, None])
            if capped is not None:
                z *= capped
            run.gradients.add_tile(kept, z.to(projection.weight.dtype), None, start)
    return losses


def row_pass(run: Run) -> Tensor:
    """Give the objective a few rows of logits at a time, and autograd with them. (tokens,)."""
    losses = torch.empty_like(run.logp)
    projection, vocab = run.projection, run.projection.vocab
    few = max(1, ROWS_BYTES // (vocab * run.exact.itemsize))
    for span in run.spans():
        targets = run.inputs.targets[span]
        z = run.hidden[span].to(projection.weight.dtype) @ projection.weight.T
        other = None
        if run.reference and run.inputs.reference_hidden is not None:
            other = run.inputs.reference_hidden.detach()[span].to(run.reference.weight.dtype) @ run.reference.weight.T
        exact, slope, rows = projection.target(run.hidden[span], targets)
        at_target = torch.zeros_like(exact)
        for start in range(0, len(targets), few):
            part = slice(start, min(start + few, len(targets)))
            here = slice(span.start + part.start, span.start + part.stop)
            at_target[part] = _row_part(run, here, z[part], exact[part], None if other is None else other[part], losses)
        if run.gradients is not None:
            run.gradients.add_targets(span, targets, at_target * slope, rows)
            for start in range(0, vocab, TILE):
                run.gradients.add_tile(span, z[:, start : start + TILE], None, start)
    return losses


def _row_part(run: Run, here: slice, raw: Tensor, exact: Tensor, other: Tensor | None, losses: Tensor) -> Tensor:
    """Score a few rows; put the gradient on the bare products into ``raw``; return the targets' own part, (rows,)."""
    targets = run.inputs.targets[here]
    column = targets[:, None]
    z = raw.to(run.exact) if raw.dtype != run.exact else raw.clone()
    capped = run.projection.finish(z, 0)
    z.scatter_(1, column, float("-inf"))
    top = z.amax(-1).clamp_min(torch.finfo(run.exact).min)
    p = (z - top[:, None]).exp_()
    total = p.sum(-1)
    run.hit[here] = exact >= top
    run.logp[here] = torch.nn.functional.logsigmoid(exact - top - total.log())
    z.scatter_(1, column, exact[:, None])
    reference_logits = None
    if other is not None and run.reference is not None and run.reference_logp is not None:
        reference_logits = other.to(run.exact) if other.dtype != run.exact else other
        run.reference.finish(reference_logits, 0)
        run.reference_logp[here] = reference_logits.log_softmax(-1).gather(1, column)[:, 0]
    scores = run.scores(here)
    if run.gradients is None:
        scores = replace(scores, logits=z, reference_logits=reference_logits)
        losses[here] = call_objective(run.objective, scores)
        return torch.zeros_like(exact)
    with torch.enable_grad():
        logp = scores.logp.detach().requires_grad_()
        z.requires_grad_()
        scores = replace(scores, logp=logp, logits=z, reference_logits=reference_logits)
        loss = call_objective(run.objective, scores)
        slope, grad = None, None
        if loss.requires_grad:
            slope, grad = torch.autograd.grad(loss.sum(), (logp, z), allow_unused=True)
    losses[here] = loss.detach()
    at_target = torch.zeros_like(exact)
    if slope is not None:
        others = -torch.expm1(scores.logp.detach()) * -slope
        at_target -= others
        p *= (others / total.clamp_min(torch.finfo(run.exact).tiny))[:, None]
    if grad is not None:
        at_target += grad.gather(1, column)[:, 0]
        grad.scatter_(1, column, 0.0) if slope is None else grad.scatter_(1, column, 0.0).add_(p)
    elif slope is not None:
        grad = p
    else:
        grad = torch.zeros_like(p)
    grad *= run.projection.given.scale
    if capped is not None:
        grad *= capped
    raw.copy_(grad)
    return at_target
