"""Checks of a head's inputs, and their error messages."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.head.trouble import REASONS, Trouble, shown
from lightning_sft.head.types import HeadInput, Unembedding
from lightning_sft.objectives.base import Objective
from lightning_sft.scores import StatisticUnavailable, TokenScores


def check_objective(objective: Objective, targets: Tensor, vocab: int, largest: int | None = None) -> None:
    """Check an objective and the targets that it is to score.

    Args:
        objective: the objective.
        targets: target ids, (tokens,).
        vocab: candidates that have a logit.
        largest: the largest target, if it is known and none is negative; else it is read from the device.

    Raises:
        UserError: the objective has trainable parameters (the fused head differentiates with respect to the scores
            alone, so they would silently never move), or a target is outside the vocabulary.
    """
    trainable = [name for name, parameter in objective.named_parameters() if parameter.requires_grad]
    if trainable:
        raise UserError(
            f"{type(objective).__name__} has trainable parameters: {', '.join(trainable)}. Allowed: objectives "
            "without any, because the head differentiates with respect to the scores alone. Make them buffers "
            "(register_buffer) and change them in update()."
        )
    if targets.numel() == 0 or (largest is not None and largest < vocab):
        return
    low, high = torch.stack(torch.aminmax(targets)).tolist()
    if low >= 0 and high < vocab:
        return
    bad = sorted(set(targets[(targets < 0) | (targets >= vocab)].tolist()))
    raise UserError(
        f"Targets {shown(bad)} are outside the vocabulary of {vocab} ids (0 to {vocab - 1}). Unsupervised positions "
        "must be left out before the head. Does the tokenizer belong to the model? If tokens were added, call "
        "model.resize_token_embeddings(len(tokenizer))."
    )


def check_call(inputs: HeadInput, unembedding: Unembedding, objective: Objective) -> None:
    """Check what a head is called with.

    Raises:
        UserError: shapes do not fit, the unembedding is a shard, or see ``check_objective``.
    """
    weight = unembedding.weight
    if hasattr(weight, "full_tensor"):
        raise UserError(
            "The unembedding is still sharded (a DTensor). Call the head inside the forward of the module that "
            "fully_shard wraps as root, or register the calling method with register_fsdp_forward_method."
        )
    if inputs.hidden.ndim != 2:
        raise UserError(
            f"Got hidden {tuple(inputs.hidden.shape)} and targets {tuple(inputs.targets.shape)}. Allowed: supervised "
            "positions alone, (tokens, dim) and (tokens,). From (batch, length, dim) and labels, that is "
            "hidden[:, :-1][at] and labels[:, 1:][at] with at = labels[:, 1:] != -100."
        )
    if weight.shape[1] != inputs.hidden.shape[-1] or inputs.targets.shape != inputs.hidden.shape[:-1]:
        raise UserError(
            f"Got hidden {tuple(inputs.hidden.shape)}, targets {tuple(inputs.targets.shape)} and unembedding "
            f"{tuple(weight.shape)}. Allowed: (tokens, dim), (tokens,) and (vocab, dim)."
        )
    check_objective(objective, inputs.targets, weight.shape[0], inputs.largest_target)


def call_objective(objective: Objective, scores: TokenScores) -> Tensor:
    """Return the losses, (tokens,), of an objective, times the weights of the tokens.

    Raises:
        StatisticUnavailable: the scores do not hold what the objective reads; the message names both.
        UserError: the losses have another shape.
    """
    try:
        losses = objective(scores)
    except StatisticUnavailable as error:
        declared = f"reads={objective.reads!r}, reference={objective.reference!r}"
        raise StatisticUnavailable(f"{type(objective).__name__} ({declared}): {error}") from error
    if losses.shape != scores.logp.shape:
        raise UserError(
            f"{type(objective).__name__} returned losses of shape {tuple(losses.shape)} for {len(scores)} tokens. "
            f"Allowed: one loss a token, {tuple(scores.logp.shape)}; an objective never reduces."
        )
    return losses if scores.weight is None else losses * scores.weight  # type: ignore[no-any-return]


def find_trouble(
    loss_sum: Tensor, losses: Tensor, logp: Tensor, inputs: HeadInput, objective: Objective, *, strict: bool
) -> Trouble:
    """Take down what is not finite, without waiting for the device unless strict.

    Args:
        loss_sum: sum of the losses, (): the one number that every token enters.
        losses: (tokens,).
        logp: (tokens,).
        inputs: what the head was called with.
        objective: of the losses.
        strict: raise if anything is.

    Raises:
        UserError: names the sequences that brought it about, and whether states, unembedding or objective did.
    """
    reason = torch.zeros(len(losses), dtype=torch.uint8, device=losses.device)
    causes = (inputs.weight, inputs.hidden, logp, losses)
    for number in range(len(REASONS), 0, -1):  # so that the first cause is written last
        values = causes[number - 1]
        if values is not None:
            finite = torch.isfinite(values.detach())
            reason.masked_fill_(~(finite.all(-1) if finite.ndim > 1 else finite), number)
    trouble = Trouble(~torch.isfinite(loss_sum), loss_sum, reason, inputs.row, type(objective).__name__)
    if strict:
        trouble.raise_if_found()
    return trouble
