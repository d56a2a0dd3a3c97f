"""Memory that is used again and again."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """One piece of memory for each purpose, used for tile after tile and chunk after chunk.

    On a CPU fresh memory of some MiB comes from the system page by page, which can take as long as the arithmetic on it
    (docs/performance_log.md).

    Args:
        device: where the tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flat: dict[str, Tensor] = {}

    def take(self, purpose: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return a contiguous tensor, (rows, columns), of any content; the one taken before for it is void."""
        flat = self._flat.get(purpose)
        if flat is None or flat.numel() < rows * columns:
            flat = self._flat[purpose] = torch.empty(rows * columns, dtype=dtype, device=self._device)
        return flat[: rows * columns].view(rows, columns)

    def clear(self) -> None:
        """Let go of all memory."""
        self._flat.clear()
