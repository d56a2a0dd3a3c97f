"""What one model says about the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sft.audit.rows import AuditRows
from lightning_sft.metrics.silent import TokenReading
from lightning_sft.models.finished import FinishedModel
from lightning_sft.probes.near_synonyms import near_synonyms

PAIRS = 8192  # of embedding rows that are compared at a time


@dataclass(frozen=True)
class TokenPass:
    """One model's reading of all supervised tokens.

    Attributes:
        tokens: in the order of `AuditRows`, on the CPU.
        answers: answers that hold a token which ends generation.
        exact: share of them whose every token is the first choice; nan without any.
        near: whether a token is outranked by a near-synonym, (tokens,), bool.
    """

    tokens: TokenReading
    answers: int
    exact: float
    near: Tensor


def read_tokens(model: FinishedModel, rows: AuditRows, advance: Callable[[int], Any]) -> TokenPass:
    """Score every supervised token once.

    Args:
        model: in eval mode.
        rows: what to read.
        advance: told how many more rows are done.
    """
    dtype = torch.promote_types(model.causal_lm.dtype, torch.float32)
    logp, margin = torch.empty(len(rows), dtype=dtype), torch.empty(len(rows), dtype=dtype)
    competitor = torch.empty(len(rows), dtype=torch.int64)
    answers = exact = 0
    for places, batch in rows.batches():
        output = model.score(batch)
        reading = TokenReading.of_scores(output.scores)
        logp[places], margin[places] = reading.logp.cpu().to(dtype), reading.margin.cpu().to(dtype)
        competitor[places] = reading.competitor.cpu()
        judged = model.answers(batch, output).exact
        answers, exact = answers + len(judged), exact + int(judged.sum())
        advance(len(batch["labels"]))
    reading = TokenReading(logp, margin, competitor)
    behind = (~reading.is_top1 & (competitor >= 0)).nonzero()[:, 0]
    near = torch.zeros(len(rows), dtype=torch.bool)
    for some in behind.split(PAIRS):
        near[some] = near_synonyms(model.causal_lm, rows.tokenizer, rows.targets[some], competitor[some])
    return TokenPass(reading, answers, exact / answers if answers else float("nan"), near)
