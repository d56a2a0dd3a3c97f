"""Sums in float64 wherever the numbers are: Apple's GPUs have no float64, so theirs are summed up on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

#: devices without float64
NARROW = frozenset({"mps"})


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on its device or, where that has no float64, on the CPU."""
    return tensor.to(wide_device(tensor.device), torch.float64)


def wide_device(device: torch.device | str) -> torch.device:
    """Return the device on which float64 sums of ``device`` are kept."""
    device = torch.device(device)
    return torch.device("cpu") if device.type in NARROW else device
