"""The way over the tokens for objectives that read their row of logits: autograd, a few rows at a time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_sft.head.checks import call_objective
from lightning_sft.head.run import HeadRun
from lightning_sft.scores import TokenScores


def row_pass(run: HeadRun) -> Tensor:
    """Multiply chunk by chunk, but give the objective a few rows at a time. Returns the losses, (tokens,)."""
    losses = torch.empty_like(run.logp)
    vocab, dtype = run.projection.vocab, run.projection.weight.dtype
    few = max(1, run.sizes.rows // (vocab * run.accumulation_dtype.itemsize))
    for span in run.spans():
        products = run.workspace.take("products", span.stop - span.start, vocab, dtype)
        torch.mm(run.hidden[span].to(dtype), run.projection.weight.T, out=products)
        z_target, slope, target_rows = run.projection.target(run.hidden[span], run.inputs.targets[span])
        others = None
        if run.reference is not None and run.inputs.reference_hidden is not None:
            others = run.inputs.reference_hidden.detach()[span].to(dtype) @ run.reference.weight.T
        at_target = torch.zeros_like(z_target)
        for start in range(0, len(products), few):
            part = slice(start, start + few)
            here = slice(span.start + start, min(span.start + start + few, span.stop))
            reference = None if others is None else _reference(run, here, others[part])
            losses[here] = _rows(run, here, products[part], z_target[part], at_target[part], reference)
        if run.gradients is not None:
            run.gradients.add_targets(span, run.inputs.targets[span], at_target * slope, target_rows)
            run.gradients.add_tile(span, products, None, 0)
    return losses


def _reference(run: HeadRun, here: slice, products: Tensor) -> Tensor:
    """Return the reference model's logits, (rows, vocab), and note its log-probabilities of the targets."""
    assert run.reference is not None
    assert run.reference_logp is not None
    logits = products.to(run.accumulation_dtype)
    run.reference.apply_bias_scale_cap(logits, 0)
    run.reference_logp[here] = logits.log_softmax(-1).gather(1, run.inputs.targets[here, None])[:, 0]
    return logits


def _rows(
    run: HeadRun, here: slice, products: Tensor, z_target: Tensor, at_target: Tensor, reference: Tensor | None
) -> Tensor:
    """Score a few rows and, if wanted, put the gradient on the bare products in their place.

    Args:
        run: the run.
        here: which tokens.
        products: hidden states times unembedding, (rows, vocab); overwritten by their gradient, zero at the targets.
        z_target: the targets' exact logits, (rows,).
        at_target: overwritten by the gradient on them, (rows,).
        reference: the reference model's logits, (rows, vocab), or None.

    Returns:
        The losses, (rows,).
    """
    target = run.inputs.targets[here, None]
    logits = products.to(run.accumulation_dtype, copy=True)
    capped = run.projection.apply_bias_scale_cap(logits, 0)
    logits.scatter_(1, target, float("-inf"))
    top = logits.amax(-1).clamp_min(torch.finfo(run.accumulation_dtype).min)
    others = (logits - top[:, None]).exp_()
    total = others.sum(-1)
    run.logp[here] = logsigmoid(z_target - top - total.log())
    run.is_top1[here] = z_target >= top
    if run.inputs.competitors:
        strongest, competitor = logits.max(-1)
        run.note_competitors(here, z_target - top, competitor.masked_fill_(strongest.isneginf(), -1))
    logits.scatter_(1, target, z_target[:, None])
    wanted = reference if run.objective.reference == "logits" else None
    scores = replace(run.scores(here), logits=logits, reference_logits=wanted)
    if run.gradients is None:
        return call_objective(run.objective, scores)
    losses, by_logp, by_row = _differentiate(run, scores)
    # dL/dlogits = dL/dlogp (onehot - softmax) + what autograd found on the row; 1 - p and the others' share are exact
    rest = by_logp * torch.expm1(scores.logp)
    gradient = others.mul_((rest / total.clamp_min(torch.finfo(run.accumulation_dtype).tiny))[:, None])
    if by_row is not None:
        gradient += by_row
    at_target.copy_(gradient.gather(1, target)[:, 0] - rest)
    gradient.scatter_(1, target, 0.0)
    if run.projection.given.scale != 1.0:
        gradient *= run.projection.given.scale
    if capped is not None:
        gradient *= capped
    products.copy_(gradient)
    return losses


def _differentiate(run: HeadRun, scores: TokenScores) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the losses, their slope in logp, both (rows,), and in the row, (rows, vocab) or None if they have none."""
    assert scores.logits is not None
    with torch.enable_grad():
        logp, logits = scores.logp.detach().requires_grad_(), scores.logits.detach().requires_grad_()
        losses = call_objective(run.objective, replace(scores, logp=logp, logits=logits))
        if not losses.requires_grad:
            return losses, torch.zeros_like(logp), None
        by_logp, by_row = torch.autograd.grad(losses.sum(), (logp, logits), allow_unused=True)
    return losses.detach(), torch.zeros_like(logp) if by_logp is None else by_logp, by_row
