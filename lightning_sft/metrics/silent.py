"""Silent failure on any tokens: did the loss fall while the right token stayed behind the same competitor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_sft.held_out import MIN_ROWS
from lightning_sft.metrics.exact_share import no_narrower
from lightning_sft.metrics.row_bootstrap import row_bootstrap
from lightning_sft.metrics.wide import wide
from lightning_sft.scores import TokenScores

RESAMPLES = 2000


@dataclass(frozen=True)
class TokenReading:
    """What a model says about supervised tokens; one row a token.

    Attributes:
        logp: log-probability of the target in nats, (tokens,).
        margin: logit of the target minus that of the strongest other candidate, (tokens,).
        competitor: id of that candidate, (tokens,), int64; the lowest of several that are equally strong, and -1 where
            there is no other candidate (the margin is then the largest number).
    """

    logp: Tensor
    margin: Tensor
    competitor: Tensor

    @classmethod
    def of_logits(cls, logits: Tensor, targets: Tensor) -> TokenReading:
        """Return the reading of logits at hand, (tokens, vocab), for targets (tokens,)."""
        logits = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
        target = logits.gather(1, targets[:, None])[:, 0]
        value, competitor = logits.scatter(1, targets[:, None], float("-inf")).max(1)
        competitor = competitor.masked_fill(value.isneginf(), -1)
        return cls(target - logits.logsumexp(1), target - value.clamp_min(torch.finfo(value.dtype).min), competitor)

    @classmethod
    def of_scores(cls, scores: TokenScores) -> TokenReading:
        """Return the reading that a head's scores hold, where it was asked for competitors."""
        return cls(scores.logp, scores.require("margin"), scores.require("competitor"))

    @property
    def is_top1(self) -> Tensor:
        """Whether the target is the first choice, (tokens,), bool; a tie is one, NaN is none."""
        return self.margin >= 0

    @property
    def competitor_logp(self) -> Tensor:
        """Log-probability of the competitor, (tokens,)."""
        return self.logp - self.margin

    @property
    def top_logp(self) -> Tensor:
        """Log-probability of the first choice, (tokens,)."""
        return torch.maximum(self.logp, self.competitor_logp)

    def cpu(self) -> TokenReading:
        """Return the reading on the CPU, with floats in float64."""
        return TokenReading(wide(self.logp).cpu(), wide(self.margin).cpu(), self.competitor.cpu())

    def at(self, index: Tensor) -> TokenReading:
        """Return some of the tokens, by index or by a mask."""
        return TokenReading(self.logp[index], self.margin[index], self.competitor[index])

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.logp)


@dataclass(frozen=True)
class SilentReading:
    """One set of tokens, read now and, if a first reading is at hand, compared with it.

    Shares are nan where they would be shares of nothing, and everything is nan where a token's score is. Four shares
    tell what became of the tokens outranked at the first reading, and sum to 1: ``flipped``, ``share``, ``displaced``
    and ``unlearned``.

    Attributes:
        tokens: tokens of the set.
        rows: rows that they belong to.
        nll: mean negative log-likelihood, nats per token.
        outranked: share of tokens whose target is not the first choice.
        expected: mean of 1 - p of the first choice: what ``outranked`` would be if the model were calibrated.
        excess: outranked - expected; positive: the model is surer of its first choices than it is right.
        excess_low: lower bound of the 95% bootstrap interval of ``excess`` over rows, at least as far from it as a
            calibrated model's chance reaches; nan with fewer than 8 rows.
        excess_high: its upper bound.
        nll_before: mean NLL at the first reading.
        behind: number of tokens outranked at the first reading.
        share: of those, the share whose NLL has fallen by more than ``min_fall`` and that are still outranked by the
            same competitor: silent failure.
        share_low: lower bound of the 95% interval of ``share``: by a bootstrap over rows, and no narrower than the
            exact one of as many independent tokens, see `exact_interval`; nan with fewer than 8 rows.
        share_high: its upper bound.
        flipped: of those, the share whose target is the first choice now.
        displaced: of those, the share whose NLL has fallen as far and that are outranked by another competitor now.
        unlearned: of those, the share that are still outranked, by whichever, and whose NLL has not fallen as far.
        lost: of the tokens that were the first choice at the first reading, the share that are not any more.
        min_fall: nats by which a token's NLL must have fallen to count as learned.
    """

    tokens: int
    rows: int
    nll: float
    outranked: float
    expected: float
    excess: float
    excess_low: float = math.nan
    excess_high: float = math.nan
    nll_before: float = math.nan
    behind: int = 0
    share: float = math.nan
    share_low: float = math.nan
    share_high: float = math.nan
    flipped: float = math.nan
    displaced: float = math.nan
    unlearned: float = math.nan
    lost: float = math.nan
    min_fall: float = 0.1

    @property
    def failed(self) -> int:
        """How many tokens failed silently; 0 where it is unknown."""
        return 0 if math.isnan(self.share) else round(self.share * self.behind)

    @property
    def still_behind(self) -> int:
        """How many of the tokens outranked at the first reading still are, by whichever; 0 where it is unknown."""
        return 0 if math.isnan(self.flipped) else round((1 - self.flipped) * self.behind)

    def scalars(self) -> dict[str, float]:
        """Return the shares that are shares of something, by name: what goes into a log."""
        names = ("outranked", "expected", "excess", "share", "flipped", "displaced", "unlearned", "lost")
        values = asdict(self)
        return {name: values[name] for name in names if not math.isnan(values[name])}


def learned_behind(before: TokenReading, now: TokenReading, min_fall: float = 0.1) -> Tensor:
    """Return which tokens were outranked, got a lower loss and are still outranked, by whichever, (tokens,), bool.

    Args:
        before: the first reading.
        now: the reading of the same tokens now.
        min_fall: nats by which the NLL must have fallen.
    """
    return ~before.is_top1 & ~now.is_top1 & (now.logp - before.logp > min_fall)


def failed_silently(before: TokenReading, now: TokenReading, min_fall: float = 0.1) -> Tensor:
    """Return which tokens got a lower loss and stayed behind the same competitor, (tokens,), bool.

    Args:
        before: the first reading.
        now: the reading of the same tokens now.
        min_fall: nats by which the NLL must have fallen.
    """
    return learned_behind(before, now, min_fall) & (now.competitor == before.competitor)


def read_silent(
    now: TokenReading, row: Tensor, before: TokenReading | None = None, min_fall: float = 0.1, *, intervals: bool = True
) -> SilentReading:
    """Read a set of tokens.

    Args:
        now: what the model says now.
        row: the row of the data that each token belongs to, (tokens,), int64, any numbers.
        before: what it said at first, the same tokens in the same order; None leaves out what compares.
        min_fall: nats by which a token's NLL must have fallen to count as learned.
        intervals: whether to make the bootstrap intervals, which cost more than the rest.

    Raises:
        ValueError: the numbers of tokens differ.
    """
    now, before = now.cpu(), None if before is None else before.cpu()
    if len(now) != len(row) or (before is not None and len(before) != len(now)):
        raise ValueError(f"{len(now)} tokens now, {len(row)} rows, {None if before is None else len(before)} before")
    rows, place = np.unique(row.cpu().numpy(), return_inverse=True)
    outranked = wide(~now.is_top1)
    surplus = outranked - (-torch.expm1(now.top_logp))
    nothing = math.nan if len(now) == 0 or not bool((now.logp + now.margin).isfinite().all()) else 0.0
    result = {
        "tokens": len(now),
        "rows": len(rows),
        "nll": -float(now.logp.mean()),
        "outranked": float(outranked.mean()) + nothing,
        "expected": float((outranked - surplus).mean()) + nothing,
        "excess": float(surplus.mean()) + nothing,
    }
    if intervals and not nothing:
        low, high = bootstrap_interval(_by_row(surplus, place), _by_row(torch.ones_like(surplus), place))
        reach = _reach_of_chance(outranked - surplus)
        result["excess_low"] = min(low, result["excess"] - reach)
        result["excess_high"] = max(high, result["excess"] + reach)
    if before is None:
        return SilentReading(**result)  # type: ignore[arg-type]  # ints and floats by name
    nothing += 0.0 if bool((before.logp + before.margin).isfinite().all()) else math.nan
    behind, failed = ~before.is_top1, failed_silently(before, now, min_fall)
    learned = learned_behind(before, now, min_fall)
    result |= {
        "min_fall": min_fall,
        "nll_before": -float(before.logp.mean()),
        "behind": int(behind.sum()),
        "share": _share(failed, behind) + nothing,
        "flipped": _share(behind & now.is_top1, behind) + nothing,
        "displaced": _share(learned & ~failed, behind) + nothing,
        "unlearned": _share(behind & ~now.is_top1 & ~learned, behind) + nothing,
        "lost": _share(~behind & ~now.is_top1, ~behind) + nothing,
    }
    if intervals and not nothing:
        result["share_low"], result["share_high"] = _share_interval(failed, behind, place)
    return SilentReading(**result)  # type: ignore[arg-type]


def bootstrap_interval(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95% interval of sum(numerator) / sum(denominator) over rows; see `row_bootstrap`.

    Args:
        numerator: (rows,).
        denominator: (rows,), at least 0; rows without any are left out.

    Returns:
        Both bounds; nan with fewer than 8 rows.
    """
    numerator, denominator = numerator[denominator > 0], denominator[denominator > 0]
    if len(denominator) < MIN_ROWS:
        return math.nan, math.nan
    (interval,) = row_bootstrap(numerator[None], denominator, RESAMPLES)
    return interval


def _share_interval(part: Tensor, whole: Tensor, place: NDArray[np.int64]) -> tuple[float, float]:
    """Return the 95% interval of a share of tokens; nan with fewer than 8 rows."""
    parts, wholes = _by_row(wide(part), place), _by_row(wide(whole), place)
    bounds = bootstrap_interval(parts, wholes)
    if math.isnan(bounds[0]):
        return bounds
    return no_narrower(bounds, parts.sum(), int(wholes.sum()), int((wholes > 0).sum()))


def _reach_of_chance(expected: Tensor) -> float:
    """Return how far from 0 the excess of a calibrated model is in 95% of draws, if tokens are independent.

    Resampling tokens that are (nearly) all outranked, or none of them, shows little of that chance.
    """
    return 1.96 * math.sqrt(float((expected * (1 - expected)).clamp_min(0).sum())) / len(expected)


def _by_row(values: Tensor, place: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.bincount(place, weights=values.numpy()).astype(np.float64)


def _share(part: Tensor, whole: Tensor) -> float:
    return float(part.sum()) / int(whole.sum()) if bool(whole.any()) else math.nan


def worst(now: TokenReading, before: TokenReading | None = None, most: int = 100, min_fall: float = 0.1) -> Tensor:
    """Return the tokens that stand furthest behind their competitor in probability, worst first, (at most ``most``,).

    Args:
        now: what the model says now.
        before: what it said at first: then only the tokens of `learned_behind`; None takes all that are outranked.
        most: how many.
        min_fall: as in `learned_behind`.
    """
    chosen = ~now.is_top1 if before is None else learned_behind(before, now, min_fall)
    lead = (now.competitor_logp.exp() - now.logp.exp()).masked_fill(~chosen, -math.inf)
    order = torch.argsort(lead, descending=True, stable=True)[: min(most, int(chosen.sum()))]
    return order[lead[order].isfinite()]
