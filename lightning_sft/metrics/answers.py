"""Exact match without generation: whole answers judged from the scores of their tokens, with the reference as history.

Greedy decoding reproduces an answer if and only if each of its tokens is the model's first choice after the reference's
own beginning, up to and including the token that ends generation. At temperature 1 sampling reproduces it with the
probability exp(sum of logp) of the same tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.metrics.wide import wide, wide_device
from lightning_sft.scores import IGNORED, TokenScores


class AnswerSpans(NamedTuple):
    """Which of a batch's supervised tokens belong to which answer.

    Attributes:
        answer: number of the answer that a supervised token belongs to, (tokens,), int64, from 0.
        judged: whether the token stands before the end of the answer or is the token that ends it, (tokens,), bool.
        complete: whether an answer holds a token that ends generation, (answers,), bool; others are no items.
    """

    answer: Tensor
    judged: Tensor
    complete: Tensor


def answer_spans(labels: Tensor, ends: Collection[int]) -> AnswerSpans:
    """Find the answers in a batch: runs of supervised positions that follow each other in one row.

    Args:
        labels: unshifted labels, (batch, length), int64, -100 where untrained. The first label of each row or packed
            document is -100, so that no run crosses a border.
        ends: ids of the tokens that end generation.
    """
    at = labels[:, 1:] != IGNORED
    before = torch.zeros_like(at)
    before[:, 1:] = at[:, :-1]
    starts = (at & ~before)[at]
    answer = starts.long().cumsum(0) - 1
    ended = torch.isin(labels[:, 1:][at], torch.tensor(sorted(ends), device=labels.device, dtype=labels.dtype))
    seen = ended.long().cumsum(0)
    earlier = seen - ended.long()  # ends before this token, in the batch
    at_start = torch.zeros(int(starts.sum()), dtype=torch.int64, device=labels.device)
    at_start[answer[starts]] = earlier[starts]
    judged = earlier == at_start[answer]
    complete = torch.zeros_like(at_start, dtype=torch.bool)
    complete[answer[ended]] = True
    return AnswerSpans(answer, judged, complete)


class AnswerReading(NamedTuple):
    """One row an answer that holds a token which ends generation; every field is (items,).

    Attributes:
        exact: whether every judged token is the model's first choice, bool.
        logp: sum of their log-probabilities in nats, float64.
        source: source of the answer's row, int64; None if unknown.
    """

    exact: Tensor
    logp: Tensor
    source: Tensor | None


def read_answers(scores: TokenScores, spans: AnswerSpans) -> AnswerReading:
    """Judge the answers of a batch.

    Args:
        scores: what a head returned for the batch, with ``is_top1``.
        spans: of the same batch.
    """
    device = wide_device(scores.logp.device)
    answer, judged, complete = (part.to(device) for part in spans)
    count = len(complete)
    wrong = (judged & ~scores.require("is_top1").to(device)).long()
    missed = torch.zeros(count, dtype=torch.int64, device=device).index_add_(0, answer, wrong)
    total = torch.zeros(count, dtype=torch.float64, device=device).index_add_(0, answer, wide(scores.logp) * judged)
    source = None
    if scores.source is not None:
        source = torch.zeros(count, dtype=torch.int64, device=device)
        source[answer] = scores.source.to(device)
        source = source[complete]
    return AnswerReading((missed == 0)[complete], total[complete], source)


def pass_at_k(p: Tensor, k: int) -> Tensor:
    """Return the probability that one of k independent samples is right, 1 - (1 - p)^k, without cancellation.

    Args:
        p: probability of one, any shape, in [0, 1].
        k: number of samples, 1 or more.
    """
    return -torch.expm1(k * torch.log1p(-p))


def numbers_of_samples(given: Sequence[int] | None, setting: str) -> tuple[int, ...]:
    """Return the k of a setting, each once, in ascending order.

    Args:
        given: the k; None for none.
        setting: its name, for the message.

    Raises:
        UserError: something that is no whole number from 1.
    """
    for k in given or ():
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise UserError(f"{setting} holds {k!r}. Allowed: a list of whole numbers from 1, such as [1, 8].")
    return tuple(sorted(set(given or ())))
