"""Divergences between the reference's prediction and the model's, over the whole vocabulary."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from lightning_sft.scores import TokenScores

Direction = Literal["forward", "reverse"]


def predictions(scores: TokenScores, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of the model, differentiable, and of the reference, (tokens, vocab) each.

    Args:
        scores: with the logits of both.
        temperature: what both rows of logits are divided by.
    """
    model = scores.require("logits")
    reference = scores.require("reference_logits").detach().to(model.dtype)
    if temperature != 1.0:
        model, reference = model / temperature, reference / temperature
    return model.log_softmax(-1), reference.log_softmax(-1)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first || second), (tokens,), of log-probabilities, (tokens, vocab)."""
    return kl_div(second, first, reduction="none", log_target=True).sum(-1)  # torch names them the other way round


def directed_kl(model: Tensor, reference: Tensor, direction: Direction) -> Tensor:
    """Return KL(reference || model), forward, or KL(model || reference), reverse, (tokens,)."""
    return kl(reference, model) if direction == "forward" else kl(model, reference)


def jensen_shannon(model: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return the generalized Jensen-Shannon divergence, (tokens,).

    ``beta KL(reference || m) + (1 - beta) KL(model || m)`` with ``m = beta reference + (1 - beta) model``, of which the
    forward and the reverse divergence are the limits, divided by beta and by 1 - beta (Agarwal et al., arXiv
    2306.13649, equation 1).

    Args:
        model: log-probabilities, (tokens, vocab).
        reference: log-probabilities, (tokens, vocab).
        beta: share of the reference, in (0, 1).
    """
    mixture = torch.logaddexp(reference + math.log(beta), model + math.log1p(-beta))
    return beta * kl(reference, mixture) + (1.0 - beta) * kl(model, mixture)
