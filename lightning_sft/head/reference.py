"""The ground truth: plain logits, plain autograd, one screen. It shares no code with the fused head but the checks."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sft.head.checks import call_objective, check_call, check_objective, find_trouble
from lightning_sft.head.types import HeadInput, HeadOutput, Unembedding
from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores


def plain_logits(hidden: Tensor, unembedding: Unembedding) -> Tensor:
    """Return the logits of every hidden state, (tokens, vocab), in fp32 (float64 for float64 inputs)."""
    logits = hidden @ unembedding.weight.T.to(hidden.dtype)
    if unembedding.bias is not None:
        logits = logits + unembedding.bias.to(hidden.dtype)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * unembedding.scale
    if unembedding.softcap is not None:
        logits = unembedding.softcap * torch.tanh(logits / unembedding.softcap)
    return logits


def reference_head(
    inputs: HeadInput, unembedding: Unembedding, objective: Objective, *, strict: bool = True
) -> HeadOutput:
    """Score the supervised tokens and sum their losses through the whole (tokens, vocab) matrix of logits."""
    check_call(inputs, unembedding, objective)
    reference = None
    if inputs.reference_hidden is not None:
        with torch.no_grad():
            reference = plain_logits(inputs.reference_hidden, inputs.reference or unembedding)
    logits = plain_logits(inputs.hidden, unembedding)
    return reference_from_logits(logits, inputs, objective, reference, strict=strict)


def reference_from_logits(
    logits: Tensor,
    inputs: HeadInput,
    objective: Objective,
    reference_logits: Tensor | None = None,
    *,
    strict: bool = True,
) -> HeadOutput:
    """Score the supervised tokens from logits at hand, such as a model's own, and sum their losses.

    Args:
        logits: (tokens, vocab), at the supervised positions.
        inputs: targets, rows and sources are read; hidden states only to say whether they are finite.
        objective: the objective.
        reference_logits: the reference model's, (tokens, vocab), or None.
        strict: raise where losses are not finite; otherwise ``HeadOutput.trouble`` tells.
    """
    check_objective(objective, inputs.targets, logits.shape[-1], inputs.largest_target)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = inputs.targets[:, None]
    reference_logp = None
    if reference_logits is not None:
        reference_logits = reference_logits.detach().to(logits.dtype)
        reference_logp = reference_logits.log_softmax(-1).gather(-1, target)[:, 0]
    margin = competitor = None
    if inputs.competitors:
        strongest, competitor = logits.detach().scatter(-1, target, float("-inf")).max(-1)
        competitor = competitor.masked_fill(strongest.isneginf(), -1)
        strongest = strongest.clamp_min(torch.finfo(logits.dtype).min)
        margin = logits.detach().gather(-1, target)[:, 0] - strongest
    scores = TokenScores(
        logp=logits.log_softmax(-1).gather(-1, target)[:, 0],
        targets=inputs.targets,
        row=inputs.row,
        source=inputs.source,
        is_top1=logits.detach().gather(-1, target)[:, 0] >= logits.detach().amax(-1),
        weight=None if inputs.weight is None else inputs.weight.detach().to(logits.dtype),
        reference_logp=reference_logp,
        margin=margin,
        competitor=competitor,
        logits=logits if objective.reads == "row" else None,
        reference_logits=reference_logits if objective.reference == "logits" else None,
    )
    losses = call_objective(objective, scores)
    loss_sum = losses.sum() + 0.0 * scores.logp.sum()  # keeps a constant loss connected: every rank needs gradients
    trouble = find_trouble(loss_sum.detach(), losses.detach(), scores.logp.detach(), inputs, objective, strict=strict)
    return HeadOutput(loss_sum, losses.detach(), scores.detached(), trouble)
