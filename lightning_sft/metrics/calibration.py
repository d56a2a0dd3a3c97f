"""Calibration of the first choice: how far its probability is from how often it is right."""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from lightning_sft.metrics.wide import wide

BINS = 15


def first_choice_calibration(confidence: Tensor, right: Tensor, bins: int = BINS) -> float:
    """Return the expected calibration error of a model's first choice.

    The tokens are put into bins by the probability of the first choice; the error is the mean over tokens of the gap
    between their bin's mean probability and the share of its first choices that are right: 0 is perfect, 1 the worst.
    It is torchmetrics' binary form with "the first choice is right" as the event, so that no (tokens, vocab) tensor is
    needed.

    Args:
        confidence: probability of the likeliest token, (tokens,), in [0, 1].
        right: whether the target is that token, (tokens,), bool.
        bins: of equal width over [0, 1].

    Returns:
        The error; nan without a token.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.
    """
    if not len(confidence):
        return float("nan")
    # above 1 by rounding would be taken for a logit
    bounded = wide(confidence.detach()).clamp(0.0, 1.0)
    return float(binary_calibration_error(bounded, right.to(bounded.device).long(), n_bins=bins, norm="l1"))
