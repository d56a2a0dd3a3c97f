"""What a model makes of each row of a batch, from the scores of its trained tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_sft.metrics.answers import AnswerSpans, read_answers
from lightning_sft.metrics.wide import wide, wide_device
from lightning_sft.scores import TokenScores


class RowReading(NamedTuple):
    """One line a row; every field is (rows,). Averages are nan where there is nothing to average.

    Attributes:
        tokens: trained tokens that were scored, int64.
        nll: their mean negative log-likelihood in nats, float64.
        mean_p: mean probability of the target, float64.
        lowest_logp: lowest log-probability among them in nats, float64; nan without a token.
        first_wrong: place in the row of the first one that is not the model's first choice, int64; -1 if all are.
        answers: complete answers (see `AnswerReading`), int64.
        exact: how many of them are exact, int64.
        pass_at_1: mean over them of exp(sum of logp), float64.
    """

    tokens: Tensor
    nll: Tensor
    mean_p: Tensor
    lowest_logp: Tensor
    first_wrong: Tensor
    answers: Tensor
    exact: Tensor
    pass_at_1: Tensor


def read_rows(scores: TokenScores, spans: AnswerSpans, row: Tensor, place: Tensor, rows: int) -> RowReading:
    """Return what the scores of a batch say of each row.

    Args:
        scores: what a head returned for the batch, with ``is_top1``.
        spans: the answers of the same batch.
        row: row of the batch that each token belongs to, (tokens,), int64.
        place: place of each token in its row, (tokens,), int64, from 0.
        rows: number of rows of the batch; a row may have no token.
    """
    device = wide_device(scores.logp.device)
    row, place = row.to(device), place.to(device)
    logp = wide(scores.logp)
    zeros = torch.zeros(rows, dtype=torch.float64, device=device)
    tokens = zeros.long().index_add_(0, row, torch.ones_like(row))
    lowest = torch.full_like(zeros, torch.inf).scatter_reduce_(0, row, logp, "amin")
    none = torch.iinfo(torch.int64).max
    wrong = torch.where(scores.require("is_top1").to(device), none, place)
    first = torch.full_like(tokens, none).scatter_reduce_(0, row, wrong, "amin")

    reading = read_answers(scores, spans)
    of_answer = torch.zeros(len(spans.complete), dtype=torch.int64, device=device)
    of_answer[spans.answer.to(device)] = row
    of_answer = of_answer[spans.complete.to(device)]
    answers = zeros.long().index_add_(0, of_answer, torch.ones_like(of_answer))
    return RowReading(
        tokens=tokens,
        nll=-zeros.index_add(0, row, logp) / tokens,
        mean_p=zeros.index_add(0, row, logp.exp()) / tokens,
        lowest_logp=torch.where(tokens > 0, lowest, torch.nan),
        first_wrong=torch.where(first == none, -1, first),
        answers=answers,
        exact=zeros.long().index_add_(0, of_answer, reading.exact.long()),
        pass_at_1=zeros.index_add(0, of_answer, reading.logp.exp()) / answers,
    )
