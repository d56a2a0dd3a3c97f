"""The tokens that are furthest behind their competitor, and what stands before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from lightning_sft.audit.rows import AuditRows
from lightning_sft.metrics.silent import TokenReading, worst

TAIL = 24  # tokens of a context that are shown


@dataclass(frozen=True)
class Context:
    """A token that is behind its competitor, and what stands before it: a probe, and the evidence for it.

    Attributes:
        context: the end of the context, as text.
        correct: the right token, as text.
        competitor: the competitor, as text.
        competitor_start: that under the first model, the same where the token failed silently; None without one.
        p_correct: probability of the right token.
        p_competitor: of the competitor.
        nll_start: NLL of the right token under the first model, nats; None without one.
        nll: under the second.
        p_correct_start: probability of the right token under the first model; None without one.
        p_competitor_start: of the first model's competitor under it; None without one.
        near_synonym: whether the competitor is a near-synonym.
        set: of the data.
        source: name of the row's source.
        row: number of its row in the set.
        position: its place in the row.
        step: optimizer steps of the second model; None if unknown.
        correct_id: the right token.
        competitor_id: the competitor.
        competitor_start_id: that under the first model; None without one.
        context_ids: ids before it, all of them.
    """

    context: str
    correct: str
    competitor: str
    competitor_start: str | None
    p_correct: float
    p_competitor: float
    nll_start: float | None
    nll: float
    p_correct_start: float | None
    p_competitor_start: float | None
    near_synonym: bool
    set: str
    source: str
    row: int
    position: int
    step: int | None
    correct_id: int
    competitor_id: int
    competitor_start_id: int | None
    context_ids: list[int]

    def line(self) -> dict[str, Any]:
        """Return the line of ``contexts.jsonl``."""
        return {k: v for k, v in asdict(self).items() if k not in ("p_correct_start", "p_competitor_start")}


def worst_contexts(
    rows: AuditRows,
    now: TokenReading,
    before: TokenReading | None,
    most: int,
    min_fall: float,
    near: Tensor,
    step: int | None,
) -> list[Context]:
    """Return the tokens furthest behind their competitor, of all outranked ones or, with a first model, of some.

    Those are the tokens that were outranked, got a lower loss and still are, by the same competitor or by another one.

    Args:
        rows: what was read.
        now: the second model's reading.
        before: the first one's.
        most: how many.
        min_fall: nats by which the NLL must have fallen.
        near: whether the competitor is a near-synonym, (tokens,), bool.
        step: of the second model; None if unknown.
    """
    decode = rows.tokenizer.decode
    contexts = []
    for token in worst(now, before, most, min_fall).tolist():
        ids = rows.context(token)
        correct, competitor = int(rows.targets[token]), int(now.competitor[token])
        first = None if before is None else int(before.competitor[token])
        contexts.append(
            Context(
                context=_text(decode, ids[-TAIL:]),
                correct=_text(decode, [correct]),
                competitor=_text(decode, [competitor]),
                competitor_start=None if first is None else _text(decode, [first]),
                p_correct=float(now.logp[token].exp()),
                p_competitor=float(now.competitor_logp[token].exp()),
                nll_start=None if before is None else -float(before.logp[token]),
                nll=-float(now.logp[token]),
                p_correct_start=None if before is None else float(before.logp[token].exp()),
                p_competitor_start=None if before is None else float(before.competitor_logp[token].exp()),
                near_synonym=bool(near[token]),
                set=rows.what,
                source=rows.source_name(token),
                row=rows.number(token),
                position=len(ids),
                step=step,
                correct_id=correct,
                competitor_id=competitor,
                competitor_start_id=first,
                context_ids=ids,
            )
        )
    return contexts


def _text(decode: Any, ids: Sequence[int]) -> str:
    return str(decode(list(ids), clean_up_tokenization_spaces=False))
