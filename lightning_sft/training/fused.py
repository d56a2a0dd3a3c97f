"""Adam and AdamW in their fused form: one pass over the weights in place of a dozen."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

_ON = ("cpu", "cuda", "mps", "xpu")


def fuse(optimizer: Optimizer) -> Optimizer:
    """Let Adam and AdamW take their fused form, unless their settings name another; return the optimizer.

    The settings that the optimizer was made with are left as they are: they are compared on resume.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return optimizer
    for group in optimizer.param_groups:
        free = group["fused"] is None and group["foreach"] is None
        plain = not (group["capturable"] or group["differentiable"])
        able = all(p.device.type in _ON and p.is_floating_point() for p in group["params"])
        if free and plain and able:
            group["fused"] = True
    return optimizer
