"""Powers of p whose value is exact for likely tokens and whose slope is exact for unlikely ones."""

from __future__ import annotations

import torch
from torch import Tensor


def one_minus_power(logp: Tensor, alpha: float | Tensor = 1.0) -> Tensor:
    """Return ``1 - p^alpha``, (tokens,), in the dtype of ``logp``.

    The value comes from expm1, since ``1 - p`` cancels near p = 1. The slope, ``-alpha p^alpha``, comes from exp:
    autograd takes it as expm1 + 1, which keeps no digit of a p below the rounding of 1. Both are made in float64,
    because exp of a rounded fp32 product is off by as many roundings as the product is large.

    Args:
        logp: log-probabilities, (tokens,), at most 0.
        alpha: the exponent, > 0: a number or (tokens,).
    """
    exponent = alpha * logp.to(torch.float64)
    power = exponent.exp()
    # adds exactly 0 to the value, and is the only part with a slope
    return (-torch.expm1(exponent).detach() - (power - power.detach())).to(logp.dtype)
