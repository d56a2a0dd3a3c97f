"""The ground truth: plain logits, plain autograd, one screen. It shares no code with the fused head."""

from __future__ import annotations

import torch
from torch import Tensor

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


def reference_head(inputs: HeadInput, unembedding: Unembedding, objective: Objective) -> HeadOutput:
    """Score the supervised tokens and sum their losses through the whole (tokens, vocab) matrix of logits."""
    logits = plain_logits(inputs.hidden, unembedding)
    target = inputs.targets[:, None]
    logp = logits.log_softmax(-1).gather(-1, target)[:, 0]
    reference_logits = reference_logp = None
    if inputs.reference_hidden is not None:
        with torch.no_grad():
            reference_logits = plain_logits(inputs.reference_hidden, inputs.reference or unembedding)
            reference_logp = reference_logits.log_softmax(-1).gather(-1, target)[:, 0]
    scores = TokenScores(
        logp=logp,
        targets=inputs.targets,
        row=inputs.row,
        source=inputs.source,
        hit=logits.detach().gather(-1, target)[:, 0] >= logits.detach().amax(-1),
        reference_logp=reference_logp,
        logits=logits if objective.reads == "row" else None,
        reference_logits=reference_logits if objective.reference == "logits" else None,
    )
    losses = objective(scores)
    return HeadOutput(losses.sum(), losses.detach(), scores.detached())
