"""Checks of a head's inputs, and their error messages."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.head.types import HeadInput, Unembedding
from lightning_sft.objectives.base import Objective
from lightning_sft.scores import StatisticUnavailable, TokenScores

_SHOWN = 8  # ids named in a message; more would hide the sentence that says what to do


def check_objective(objective: Objective, targets: Tensor, vocab: int) -> None:
    """Check an objective and the targets that it is to score.

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
    if targets.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(targets)).tolist()
    if low >= 0 and high < vocab:
        return
    bad = sorted(set(targets[(targets < 0) | (targets >= vocab)].tolist()))
    raise UserError(
        f"Targets {_ids(bad)} are outside the vocabulary of {vocab} ids (0 to {vocab - 1}). Unsupervised positions "
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
    check_objective(objective, inputs.targets, weight.shape[0])


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
) -> str | None:
    """Look at the one number that every token enters; only if it is not finite, look for the reason and return it.

    Args:
        loss_sum: sum of the losses.
        losses: (tokens,).
        logp: (tokens,).
        inputs: what the head was called with.
        objective: of the losses.
        strict: raise the reason instead of returning it.

    Raises:
        UserError: names the sequences that brought it about, and whether states, unembedding or objective did.
    """
    if bool(torch.isfinite(loss_sum)):
        return None
    trouble = f"Every loss is finite, but their sum is {float(loss_sum)}. Look at {type(objective).__name__}."
    weight = torch.ones_like(logp) if inputs.weight is None else inputs.weight
    reasons = (
        (weight, "The weights of the tokens are", "Look at the weights in those rows of the data"),
        (inputs.hidden.detach(), "The hidden states are", "Look at those rows, lower the learning rate, or use bf16"),
        (logp, "The hidden states are finite, but the log-probabilities are", "The unembedding is broken or overflows"),
        (losses, "The log-probabilities are finite, but the losses are", f"Look at {type(objective).__name__}"),
    )
    for values, what, cure in reasons:
        sick = ~torch.isfinite(values.reshape(len(losses), -1)).all(-1)
        if bool(sick.any()):
            where = "tokens " + _ids(sick.nonzero()[:, 0].tolist())
            if inputs.row is not None:
                where = f"rows {_ids(sorted(set(inputs.row[sick].tolist())))} of the micro-batch ({where})"
            trouble = f"{what} not finite (NaN or infinite) in {where}. {cure}."
            break
    if strict:
        raise UserError(trouble)
    return trouble


def _ids(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:_SHOWN]))
    return shown if len(ids) <= _SHOWN else f"{shown} and {len(ids) - _SHOWN} more"
