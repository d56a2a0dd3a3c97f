"""Which head a model gets: the fused one, if its logits are what the fused one would make of its hidden states."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.head.delegated import require_kernels
from lightning_sft.head.reference import plain_logits
from lightning_sft.head.types import Unembedding

HeadKind = Literal["auto", "fused", "reference", "cut_cross_entropy"]

# root mean square of the difference over that of the logits. Rounding alone stays three times below each (fp32: with
# TF32 products); a forgotten factor, bias or soft-capping that matters is far above.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def choose_head(
    kind: HeadKind, own_logits: Callable[[], Tensor], parts: Callable[[], tuple[Tensor, Unembedding]]
) -> Literal["fused", "reference", "cut_cross_entropy"]:
    """Decide, once at start and on a tiny batch, which head a model gets.

    Args:
        kind: ``fused`` must be possible, ``reference`` asks for the model's own logits, ``auto`` takes ``fused`` where
            it is possible and warns where it is not; ``cut_cross_entropy`` is ``fused``, but with the kernels of that
            package where they can do it.
        own_logits: returns the model's own logits of a tiny batch, (..., vocab).
        parts: returns the hidden states of the same batch, (..., dim), and the unembedding; may raise UserError for
            a model that has no such parts.

    Returns:
        ``fused`` or ``cut_cross_entropy``, or ``reference``: score the model's own logits with
        ``reference_from_logits``.

    Raises:
        UserError: ``kind`` is unknown, or is no ``auto`` and the model's logits are something else, or the package is
            not installed beside a GPU.
    """
    if kind not in ("auto", "fused", "reference", "cut_cross_entropy"):
        raise UserError(f"head={kind!r} is unknown. Allowed: auto, fused, reference, cut_cross_entropy.")
    if kind == "reference":
        return "reference"
    if kind == "cut_cross_entropy":
        require_kernels()
    reason = _mismatch(own_logits, parts)
    if reason is None:
        return "fused" if kind == "auto" else kind
    if kind != "auto":
        raise UserError(f"head={kind} cannot serve this model: {reason} Use head=auto or head=reference.")
    warnings.warn(
        f"The fused head cannot serve this model: {reason} Falling back to the model's own logits, which is correct "
        "but needs more time and memory; head=reference says that this is wanted.",
        stacklevel=2,
    )
    return "reference"


@torch.no_grad()
def _mismatch(own_logits: Callable[[], Tensor], parts: Callable[[], tuple[Tensor, Unembedding]]) -> str | None:
    """Return why plain logits would be wrong, as a sentence; None if they are right."""
    try:
        hidden, unembedding = parts()
    except UserError as error:
        return str(error)
    own = own_logits()
    plain = plain_logits(hidden.flatten(0, -2), unembedding)
    coarsest = max((own.dtype, hidden.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    own = own.flatten(0, -2).to(plain.dtype)
    if own.shape != plain.shape:
        return f"its logits have shape {tuple(own.shape)}, hidden states times unembedding {tuple(plain.shape)}."
    size = own.square().mean().sqrt()
    off = float((own - plain).square().mean().sqrt() / size.clamp_min(torch.finfo(own.dtype).tiny))
    if off <= _TOLERANCE[coarsest]:  # written so that NaN is a mismatch
        return None
    return (
        f"its logits are not hidden states times unembedding (with the bias, scale and soft-capping that its "
        f"configuration names): they differ by {off:.1e} of their size, allowed {_TOLERANCE[coarsest]:.0e} in "
        f"{str(coarsest).removeprefix('torch.')}."
    )
