"""The matrix products of a training step, bare: recorded with their shapes, then run again with nothing around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Product = Callable[[], Any]
_TWO = {"mm", "bmm"}
_THREE = {"addmm", "baddbmm", "addmm_", "baddbmm_"}
_ATTENTION = {
    "_scaled_dot_product_flash_attention_for_cpu": 2,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 4,
}
"""Attention kernels, with the products of (length, dim) and (length, length) matrices that they cannot do without."""


class Recorder(TorchDispatchMode):
    """Notes every matrix product that runs inside, as a call that repeats it on made-up numbers.

    Attributes:
        products: the calls.
        flops: of all of them; an attention kernel counts as products of whole square matrices, causal or not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products: list[Product] = []
        self.flops = 0
        self.device = torch.device("cpu")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _TWO | _THREE:
            self.device = args[0].device
            self._note(*(args[:2] if name in _TWO else args[1:3]))
        elif name in _ATTENTION:
            query = args[1] if "backward" in name else args[0]
            self.device = query.device
            length, dim = query.shape[-2:]
            heads = query.numel() // (length * dim)
            square = torch.empty(heads, length, length, dtype=query.dtype, device="meta")
            thin = torch.empty(heads, length, dim, dtype=query.dtype, device="meta")
            for i in range(_ATTENTION[name]):
                self._note(*((thin, thin.mT) if i % 2 == 0 else (square, thin)))
        return func(*args, **(kwargs or {}))

    def _note(self, a: Tensor, b: Tensor) -> None:
        self.flops += 2 * a.numel() * b.shape[-1]
        how = [(tuple(t.shape), tuple(t.stride()), t.dtype, self.device) for t in (a, b)]  # as they lie
        self.products.append(lambda: torch.matmul(*(_matrix(*one) for one in how)))

    def run(self) -> None:
        """Run the products again."""
        with torch.no_grad():
            for product in self.products:
                product()


_MADE: dict[Any, Tensor] = {}


def _matrix(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a matrix of one number that lies in memory as the recorded one did; made once for each shape."""
    key = (shape, stride, dtype, device)
    if key not in _MADE:
        _MADE[key] = torch.empty_strided(shape, stride, dtype=dtype, device=device).fill_(0.5)
    return _MADE[key]
