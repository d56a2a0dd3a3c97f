"""The reading of a model's capability on a task: what it thinks of the supervised tokens, as a few numbers.

Its place on the continuum of Li et al. ("Beyond Log Likelihood", arXiv 2510.00526) is the arithmetic mean of p over the
training set's supervised tokens before training. We leave special tokens out of it: in short answers the token that
ends them is a large share of all, and says nothing about the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_sft.errors import UserError
from lightning_sft.held_out import MIN_ROWS
from lightning_sft.metrics.calibration import first_choice_calibration
from lightning_sft.metrics.capability_reading import (
    MIDDLE,
    STRONG,
    WEAK,
    CapabilityReading,
    CutOffs,
    GroupReading,
    Histogram,
    Place,
)
from lightning_sft.metrics.exact_share import no_narrower
from lightning_sft.metrics.row_bootstrap import row_bootstrap
from lightning_sft.metrics.wide import wide

#: per cent, of p and of entropy
QUANTILES = (5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
#: a token below the first is held for unlikely, one above the second for known
UNLIKELY, KNOWN = 0.1, 0.55
LINEAR_EDGES = np.linspace(0.0, 1.0, 21)
#: of log10 p; everything less likely is in the first bin
LOG_EDGES = np.linspace(-8.0, 0.0, 33)
#: of p, fine near both ends, where percentiles of a strong and of a weak model lie
FINE_EDGES = np.concatenate([[0.0], 1.0 / (1.0 + np.exp(-np.linspace(-18.0, 18.0, 289))), [1.0]])
RESAMPLES = 1000

#: what a target is
PLAIN, SPECIAL, END = 0, 1, 2
#: what a token says of its answer: nothing, or, at the first token of a complete one, whether all of it is right
NO_ANSWER, WRONG, EXACT = 0, 1, 2


class TokenTable(NamedTuple):
    """One row a supervised token; every field is (tokens,), float64, on the CPU.

    Attributes:
        logp: log-probability of the target in nats.
        is_top1: 1 where the target is the first choice, else 0.
        top_p: probability of the first choice.
        entropy: of the prediction, in nats.
        row: number of the row of the data.
        source: index of the row's source; -1 if unknown.
        kind: ``PLAIN``, ``SPECIAL``: the target is a special token, or ``END``: it ends generation.
        answer: ``NO_ANSWER``; at the first token of an answer that ends ``EXACT`` or ``WRONG``.
    """

    logp: Tensor
    is_top1: Tensor
    top_p: Tensor
    entropy: Tensor
    row: Tensor
    source: Tensor
    kind: Tensor
    answer: Tensor

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> TokenTable:
        """Return the table of a matrix, (tokens, 8), whose columns are the fields in their order."""
        return cls(*wide(matrix).cpu().unbind(1))

    def where(self, chosen: Tensor) -> TokenTable:
        """Return the rows where ``chosen``, (tokens,), is true."""
        return TokenTable(*(column[chosen] for column in self))


def read_capability(
    tokens: TokenTable, sources: Sequence[str] = (), cut_offs: CutOffs | None = None, rows_of_set: int | None = None
) -> CapabilityReading:
    """Return the reading of a set's supervised tokens.

    Args:
        tokens: of all ranks.
        sources: names of the sources by their index; those without a token are left out.
        cut_offs: between the places of the continuum.
        rows_of_set: rows that the set has, whether read or not; None if unknown.

    Raises:
        UserError: there is no supervised token, or a score is no number.
    """
    if not len(tokens.logp):
        raise UserError(
            "The capability cannot be read: the rows that were read have no supervised token. Look at them with "
            "`lightning inspect`: which tokens are trained is set by data.train_on and by the rows themselves."
        )
    if bool(tokens.logp.isnan().any()):
        bad = int(tokens.logp.isnan().sum())
        raise UserError(
            f"The capability cannot be read: for {bad} of {len(tokens.logp)} supervised tokens the model gives no "
            "number (NaN). Its weights are broken, or it overflows in this dtype: try model.dtype=float32."
        )
    cut_offs = cut_offs or CutOffs()
    by_source = {name: tokens.where(tokens.source == i) for i, name in enumerate(sources)}
    content_by_source = {name: _some(part.where(part.kind == PLAIN), cut_offs) for name, part in by_source.items()}
    return CapabilityReading(
        all=_group(tokens, cut_offs),
        sources={name: _group(part, cut_offs) for name, part in by_source.items() if len(part.logp)},
        special=_some(tokens.where(tokens.kind != PLAIN), cut_offs),
        end=_some(tokens.where(tokens.kind == END), cut_offs),
        cut_offs=cut_offs,
        rows_of_set=rows_of_set,
        content=_some(tokens.where(tokens.kind == PLAIN), cut_offs),
        content_of_sources={name: group for name, group in content_by_source.items() if group is not None},
    )


def place_of(mean_p: float, cut_offs: CutOffs) -> Place:
    """Return the place on the continuum; the cut-offs themselves belong to its ends."""
    if mean_p >= cut_offs.strong:
        return STRONG
    return WEAK if mean_p <= cut_offs.weak else MIDDLE


def _some(tokens: TokenTable, cut_offs: CutOffs) -> GroupReading | None:
    """Return the reading of tokens that are parts of answers, if there are any."""
    parts = tokens._replace(answer=torch.zeros_like(tokens.answer))
    return _group(parts, cut_offs) if len(parts.logp) else None


def _group(tokens: TokenTable, cut_offs: CutOffs) -> GroupReading:
    p = tokens.logp.exp()
    rows, of_row = torch.unique(tokens.row, return_inverse=True)
    answers = int((tokens.answer != NO_ANSWER).sum())
    exact = int((tokens.answer == EXACT).sum())
    measured = torch.stack([p, -tokens.logp, tokens.is_top1])
    means = measured.mean(1).tolist()
    intervals = _intervals(measured, of_row, len(rows))
    right, widened = float(tokens.is_top1.sum()), intervals[2]
    widened = None if widened is None else no_narrower(widened, right, len(p), len(rows))
    return GroupReading(
        rows=len(rows),
        tokens=len(p),
        mean_p=means[0],
        mean_p_interval=intervals[0],
        nll=means[1],
        nll_interval=intervals[1],
        top1_share=means[2],
        top1_share_interval=widened,
        place=place_of(means[0], cut_offs),
        share_unlikely=float((p < UNLIKELY).double().mean()),
        share_known=float((p > KNOWN).double().mean()),
        entropy=float(tokens.entropy.mean()),
        calibration_error=first_choice_calibration(tokens.top_p, tokens.is_top1.bool()),
        answers=answers,
        exact_match=exact / answers if answers else None,
        p_quantiles=_quantiles(p),
        entropy_quantiles=_quantiles(tokens.entropy),
        p_histogram=_histogram(p, LINEAR_EDGES),
        log10_p_histogram=_histogram((tokens.logp / np.log(10.0)).clamp_min(LOG_EDGES[0]), LOG_EDGES),
        fine_p_histogram=_histogram(p, FINE_EDGES),
    )


def _intervals(values: Tensor, of_row: Tensor, rows: int) -> list[tuple[float, float] | None]:
    """Return 95% intervals of token means by a bootstrap over rows; see `row_bootstrap`.

    Args:
        values: (quantities, tokens).
        of_row: row of each token, (tokens,), from 0 to ``rows`` - 1.
        rows: number of rows; fewer than 8 give none.
    """
    if rows < MIN_ROWS:
        return [None] * len(values)
    sums = torch.zeros(len(values), rows, dtype=torch.float64).index_add_(1, of_row, values.double())
    counts = torch.bincount(of_row, minlength=rows).double()
    return [*row_bootstrap(sums.numpy(), counts.numpy(), RESAMPLES)]


def _quantiles(values: Tensor) -> dict[str, float]:
    found = np.quantile(values.numpy(), [q / 100 for q in QUANTILES])
    return {f"{q}%": float(v) for q, v in zip(QUANTILES, found, strict=True)}


def _histogram(values: Tensor, edges: NDArray[np.float64]) -> Histogram:
    counts, _ = np.histogram(values.numpy().clip(edges[0], edges[-1]), bins=edges)
    return Histogram([float(e) for e in edges], [int(c) for c in counts])
