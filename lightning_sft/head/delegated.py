"""Scores and gradients by the kernels of cut-cross-entropy, on a GPU that has them.

For objectives of log-probabilities alone: the package gives the negative log-probability of each target and takes a
gradient for each, which is all that such an objective needs. It names no strongest candidate, so that ``is_top1`` is
None in these scores. It rounds each product of a target's logit to 16 bits, and the sum over all candidates apart, so
that the error of a confident token's log-probability does not cancel as it does in plain logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lightning_sft.errors import UserError, first_line
from lightning_sft.head.checks import call_objective, check_call, find_trouble
from lightning_sft.head.fused import fused_head
from lightning_sft.head.types import HeadInput, HeadOutput, Unembedding
from lightning_sft.objectives.base import Objective
from lightning_sft.scores import TokenScores

DEVICE = "cuda"
"""Type of the devices that its kernels run on."""

_HALVES = (torch.bfloat16, torch.float16)


def load_kernels() -> Callable[..., Tensor]:
    """Return the package's ``linear_cross_entropy``.

    Raises:
        UserError: the package, or what it needs, cannot be imported.
    """
    try:
        from cut_cross_entropy import linear_cross_entropy
    except ImportError as error:
        raise UserError(
            f"head is 'cut_cross_entropy', and that package cannot be imported: {first_line(error)}. Install it with "
            "pip install 'lightning-sft[cce]', or set head: auto."
        ) from error
    return linear_cross_entropy  # type: ignore[no-any-return]


def require_kernels() -> None:
    """Raise `UserError` unless the kernels can be imported; without a device for them the chunks do the work anyway."""
    if torch.get_device_module(DEVICE).is_available():
        load_kernels()


def refusal(inputs: HeadInput, unembedding: Unembedding, objective: Objective) -> str | None:
    """Return why a call must go to the chunks of the fused head, as half a sentence; None if it need not.

    It depends on the run and never on the tokens of a batch, so that ranks and micro-batches agree.
    """
    if not torch.is_grad_enabled() or inputs.competitors:
        return "only training passes are delegated"
    if objective.reads == "row":
        return f"{type(objective).__name__} reads whole rows of logits"
    if inputs.hidden.device.type != DEVICE:
        return f"the model is on {inputs.hidden.device.type}, and its kernels are for {DEVICE}"
    if _dtype(inputs.hidden) not in _HALVES:
        return f"its kernels multiply in 16 bits, and this run in {str(_dtype(inputs.hidden)).removeprefix('torch.')}"
    if unembedding.bias is not None:
        return "the unembedding has a bias, which its kernels do not know"
    if torch.are_deterministic_algorithms_enabled():
        return "its sums come in any order, and deterministic algorithms are asked for"
    return None


def delegated_head(
    inputs: HeadInput, unembedding: Unembedding, objective: Objective, *, strict: bool = True
) -> HeadOutput:
    """Score the supervised tokens and sum their losses; same contract as ``reference_head``, ``is_top1`` apart.

    Nothing is left out of the gradient: the package's filter of small entries is off, as a loss may weigh them up.

    Raises:
        UserError: see ``check_call`` and ``load_kernels``.
    """
    check_call(inputs, unembedding, objective)
    if inputs.targets.numel() == 0:
        output: HeadOutput = fused_head(inputs, unembedding, objective, strict=strict)
        return replace(output, scores=replace(output.scores, is_top1=None))
    dtype = _dtype(inputs.hidden)
    reference_logp = None
    with torch.autocast(inputs.hidden.device.type, enabled=False):
        if inputs.reference_hidden is not None:
            with torch.no_grad():
                reference_logp = _logp(inputs.reference_hidden, inputs.reference or unembedding, inputs.targets, dtype)
        scores = TokenScores(
            logp=_logp(inputs.hidden, unembedding, inputs.targets, dtype),
            targets=inputs.targets,
            row=inputs.row,
            source=inputs.source,
            weight=None if inputs.weight is None else _wide(inputs.weight.detach()),
            reference_logp=reference_logp,
        )
        losses = call_objective(objective, scores)
        loss_sum = losses.sum() + 0.0 * scores.logp.sum()  # a constant loss stays connected: every rank needs gradients
    trouble = find_trouble(loss_sum.detach(), losses.detach(), scores.logp.detach(), inputs, objective, strict=strict)
    return HeadOutput(loss_sum, losses.detach(), scores.detached(), trouble)


def _dtype(hidden: Tensor) -> torch.dtype:
    """Return the dtype of the products: autocast's, or that of the hidden states."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _logp(hidden: Tensor, unembedding: Unembedding, targets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the log-probabilities of the targets, (tokens,), with their graph."""
    if unembedding.scale != 1.0:
        hidden = hidden * unembedding.scale
    nll = load_kernels()(
        hidden.to(dtype).contiguous(),
        unembedding.weight.to(dtype).contiguous(),
        targets,
        softcap=unembedding.softcap,
        reduction="none",
        filter_eps=None,
    )
    logp = -_wide(nll)
    return logp - logp.detach().clamp_min(0.0)  # its rounding can put a certain token above p = 1


def _wide(values: Tensor) -> Tensor:
    """Return values in fp32, or in float64 if they are in that."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
