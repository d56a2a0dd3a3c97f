"""What the head holds, allocated in its order and sizes, without its arithmetic, some of which depends on values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_sft.head.sizes import IN_PLACE, Sizes
from lightning_sft.objectives.base import Reads


class _Allocations(torch.autograd.Function):
    """The fused head's buffers in forward, its gradients until backward; see ``head/run.py`` and ``head/gradients.py``.

    ``tests/estimate/test_head.py`` holds them beside the real head's.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, dtype: torch.dtype, reads: Reads, sizes: Sizes, more: tuple[int, bool]
    ) -> Tensor:
        tokens, vocab = len(hidden), len(weight)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        chunks = max(1, math.ceil(tokens / sizes.chunk))
        in_place = reads == "logp" and weight.dtype == torch.bfloat16
        few = chunks <= (IN_PLACE if in_place else 1) or reads == "batch"
        kept = torch.bfloat16 if few and weight.dtype == torch.bfloat16 else wide
        projection, source = weight.detach().to(dtype), hidden.detach().to(dtype)
        of_hidden = torch.zeros_like(hidden, dtype=wide) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight, dtype=kept) if ctx.needs_input_grad[1] else None
        rows = math.ceil(tokens / chunks)
        references, softcap = more
        columns = sizes.tile if reads == "batch" else vocab
        buffers = [hidden.new_empty(rows, columns, dtype=dtype) for _ in range(1 + references)]
        buffers += [hidden.new_empty(rows, hidden.shape[1], dtype=wide) for _ in range(2)]
        if dtype != wide and reads != "row":
            buffers.append(hidden.new_empty(rows, min(sizes.tile, vocab), dtype=wide))
        if softcap:  # its slope, and what that is made of
            buffers += [hidden.new_empty(rows, min(sizes.tile, vocab), dtype=wide) for _ in range(2)]
        if of_weight is not None and kept != dtype:
            buffers.append(hidden.new_empty(min(sizes.tile, vocab), hidden.shape[1], dtype=dtype))
        if reads == "row":  # logits and their gradient
            buffers += [hidden.new_empty(max(sizes.rows // wide.itemsize, vocab), dtype=wide) for _ in range(2)]
        del buffers
        if of_weight is not None:
            torch.zeros_like(hidden, dtype=wide)  # the targets' part
        del projection, source
        ctx.made, ctx.dtypes = (of_hidden, of_weight), (hidden.dtype, weight.dtype)
        return hidden.new_zeros((), dtype=wide)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        made, ctx.made = ctx.made, None
        pairs = zip(made, ctx.dtypes, strict=True)
        return *(None if tensor is None else tensor.mul_(grad).to(dtype) for tensor, dtype in pairs), *(None,) * 4


def head_allocations(
    hidden: Tensor,
    weight: Tensor,
    dtype: torch.dtype,
    reads: Reads,
    sizes: Sizes,
    references: int = 0,
    softcap: bool = False,
) -> Tensor:
    """Return a loss, scalar, whose making and whose backward pass allocate what the fused head's do.

    Args:
        hidden: (tokens, dim), at the supervised positions.
        weight: the unembedding, (vocab, dim).
        dtype: of the products.
        reads: what the objective reads.
        sizes: of the head's blocks.
        references: further models whose logits are held beside.
        softcap: whether logits are soft-capped.
    """
    loss: Tensor = _Allocations.apply(hidden, weight, dtype, reads, sizes, (references, softcap))  # type: ignore[no-untyped-call]
    return loss


def plain_loss(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return the loss over all logits at once, which is what ``head: reference`` holds, scalar."""
    logits = torch.nn.functional.linear(hidden, weight).float()
    targets = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    return -logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
