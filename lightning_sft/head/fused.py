"""The fused head: scores, losses and the gradient chunk by chunk; never a (tokens, vocab) tensor.

For token-local objectives the gradient is made in the forward pass, while a chunk's exponentials are at hand: three
matrix products, two when the unembedding is frozen. Objectives of logp alone need one number a token from autograd,
s = -dL/dlogp, since dL/dlogits = s (softmax - onehot); objectives that read their row get autograd on a few rows at a
time. Cross-token objectives are scored first, and their gradient is made by recomputing the logits: one more product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.head.checks import check_call, find_trouble
from lightning_sft.head.passes import batch_pass, logp_pass
from lightning_sft.head.rows import row_pass
from lightning_sft.head.run import HeadRun
from lightning_sft.head.sizes import Sizes
from lightning_sft.head.types import HeadInput, HeadOutput, Unembedding
from lightning_sft.objectives.base import Objective

_PASSES = {"logp": logp_pass, "row": row_pass, "batch": batch_pass}


@torch.compiler.disable  # type: ignore[untyped-decorator]
def fused_head(
    inputs: HeadInput,
    unembedding: Unembedding,
    objective: Objective,
    sizes: Sizes | None = None,
    *,
    strict: bool = True,
) -> HeadOutput:
    """Score the supervised tokens and sum their losses; same contract as ``reference_head``.

    ``sizes`` says how much to work on at once; None picks for the device. Without ``strict``, losses that are not
    finite are told by ``HeadOutput.trouble``, and not raised.

    Products run in the dtype of the hidden states, or in autocast's; everything else in fp32 (float64 for float64
    inputs). The gradient goes to ``inputs.hidden``, ``unembedding.weight`` and ``unembedding.bias`` through autograd,
    once: a second backward through the same call raises, and so does one with ``create_graph=True``. Without grad mode
    none is made.

    Raises:
        UserError: see ``check_call``; also hidden states or losses that are not finite, with the rows' ids.
        StatisticUnavailable: the objective reads what the scores do not hold; the message names both.
    """
    check_call(inputs, unembedding, objective)
    device, dtype = inputs.hidden.device.type, inputs.hidden.dtype
    if torch.is_autocast_enabled(device) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    tensors = (inputs.hidden, unembedding.weight, unembedding.bias)
    need = tuple(torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in tensors)
    with torch.autocast(device, enabled=False):
        run = HeadRun(inputs, unembedding, objective, dtype, need, sizes)
        loss_sum, losses = _FusedHead.apply(*tensors, run)  # type: ignore[no-untyped-call]
    trouble = find_trouble(loss_sum.detach(), losses, run.logp, inputs, objective, strict=strict)
    return HeadOutput(loss_sum, losses, run.all_scores(), trouble)


class _FusedHead(torch.autograd.Function):
    """Compute the gradient in forward; return it in backward, multiplied by the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, run: HeadRun) -> tuple[Tensor, Tensor]:
        losses = _PASSES[run.objective.reads](run)
        run.workspace.clear()  # the gradients, which wait for backward, know it too
        if run.gradients is not None:
            run.gradients.finish(run.inputs.targets)
        ctx.gradients, run.gradients = run.gradients, None
        ctx.dtypes = tuple(None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias))
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # once_differentiable refuses only where what comes in has a graph; grad mode in backward is create_graph itself
        if torch.is_grad_enabled():
            raise UserError(
                "The fused head was differentiated with create_graph=True, as for a gradient penalty or a Hessian. Its "
                "gradient is made in the forward pass and carries no graph: the second derivative would be 0 without a "
                "word. Use head: reference (reference_head in Python), or create_graph=False."
            )
        if ctx.gradients is None:
            raise RuntimeError(
                "Backward ran a second time through one call of the fused head, which hands its gradient out once. "
                "Call the head again for each backward, or use `head: reference`."
            )
        gradients, ctx.gradients = ctx.gradients, None  # kept here, they could not become .grad without a copy
        made = (gradients.hidden, gradients.weight, gradients.bias)
        scaled = (
            None if tensor is None else tensor.mul_(grad).to(dtype)
            for tensor, dtype in zip(made, ctx.dtypes, strict=True)
        )
        return *scaled, None
