"""The first line of the page: fine, a failure, trained too little, or nothing that can be told, and why."""

from __future__ import annotations

import math

from lightning_sft.audit.result import Audit
from lightning_sft.held_out import MIN_ROWS
from lightning_sft.metrics.silent import SilentReading
from lightning_sft.metrics.silent_verdict import SilentVerdict, too_few

#: a model is almost unchanged where on text outside the task its predictions moved by less than this (nats per token),
SAME_KL = 1e-3
#: no more than this share of first choices is another, there or in the rows,
SAME_CHOICES = 0.005
#: and the loss of the rows moved by less than this (nats per token), without a guard set by less than the second
SAME_LOSS, SAME_LOSS_ALONE = 0.5, 0.05


def is_almost_unchanged(audit: Audit) -> bool:
    """Return whether the two models predict nearly the same."""
    r, f = audit.silent, audit.forgetting
    if audit.before is None or audit.is_broken or math.isnan(audit.nll_change[0]):
        return False
    if sum(_won_and_lost(r)) > SAME_CHOICES * r.tokens:
        return False
    if f is None or f.kl is None or f.changed is None:
        return abs(audit.nll_change[0]) < SAME_LOSS_ALONE
    return f.kl < SAME_KL and f.changed <= SAME_CHOICES and abs(audit.nll_change[0]) < SAME_LOSS


def loss_rose(audit: Audit) -> bool:
    """Return whether the loss of the rows rose, as far as rows can say."""
    change, low, _ = audit.nll_change
    return change > 0 and not low <= 0


def headline(audit: Audit) -> str:
    """Return the verdict in a line, with how many rows and tokens it stands on."""
    r = audit.silent
    rows = "1 row" if r.rows == 1 else f"{r.rows} rows"
    read = f"{rows}, {r.tokens} tokens"
    if is_almost_unchanged(audit):
        return f"{_unchanged(audit)} ({read})."
    parts = [_said(audit, verdict) for verdict in audit.verdicts]
    if len(parts) == 1:
        return f"{parts[0]} ({read})."
    if len(set(parts)) == 1:
        return f"{parts[0]} ({read}), whether or not it was trained on these rows."
    known = f"it is not known whether the model was trained on these rows ({read})"
    both = f"If it was: {_lower(parts[0])}. If it was not: {_lower(parts[1])}."
    return f"Cannot tell whether it fails silently: {known}. {both}"


def _unchanged(audit: Audit) -> str:
    r, f = audit.silent, audit.forgetting
    label = "Trained too little: the model" if audit.trained == "yes" else "The model"
    choices = f"another first choice at {sum(_won_and_lost(r)):.0f} of {r.tokens} places"
    general = (
        "" if f is None or f.kl is None else f", and on other text nearly the same predictions (KL {f.kl:.1e} nats)"
    )
    told = ""
    first = audit.verdicts[0]
    if first.outcome == "silent failure" and audit.trained == "yes":
        told = f". So far this is a silent failure at {r.share:.1%} of the outranked tokens"
    elif first.outcome in ("undecided", "nothing to judge") and audit.trained == "yes" and r.behind:
        why = "the interval holds the bound" if first.outcome == "undecided" else _few(r, trained=True)
        told = f". Whether it fails silently cannot be told: {why}"
    return f"{label} is almost unchanged: {choices}{general}{told}"


def _said(audit: Audit, verdict: SilentVerdict) -> str:
    """Return one verdict in a few words, without a full stop."""
    r = audit.silent
    as_trained = audit.before is not None and audit.trained != "no" and verdict is audit.verdicts[0]
    if audit.is_broken:
        return "Cannot tell anything: scores are not finite"
    if verdict.outcome == "silent failure":
        return f"Silent failure: {_places(r)} have a lower loss, and the same wrong token is still ahead"
    if verdict.outcome == "overconfident":
        return "Overconfident: the first choice is wrong more often than its probability says"
    if verdict.outcome == "undecided":
        few = f"{_places(r)} look like it, too few to be sure"
        more = "--rows" if audit.rows < audit.total_rows else "--data"
        return f"Cannot tell yet whether it fails silently: {few}. Read more rows ({more})"
    if verdict.outcome == "nothing to judge":
        if as_trained and r.behind == 0:
            return "Cannot tell whether it fails silently: no token was outranked before, so none could"
        what = "fails silently" if as_trained else "is overconfident"
        return f"Cannot tell whether it {what}: {_few(r, trained=as_trained)}"
    if not as_trained:
        return "Fine: the first choice is wrong no more often than its probability says"
    change, _, high = audit.nll_change
    if loss_rose(audit):
        return "Not fine: the loss on the rows that it was trained on rose"
    if change >= 0 or high >= 0:
        return "Trained too little: the loss on the rows that it was trained on did not clearly fall"
    if verdict.outcome == "still outranked":
        others = f", {r.displaced:.1%} behind another word than before" if r.displaced > 0 else ""
        return f"Still outranked: the loss fell, but {r.still_behind} of {_before(r)} still are{others}"
    if _more_are_outranked(r):
        return f"Not fine: more tokens are outranked than before, as {r.lost:.1%} of the first choices were lost"
    return "Fine: no sign of silent failure"


def _more_are_outranked(r: SilentReading) -> bool:
    """Return whether more first choices were lost than won, by a one-sided sign test at 5%."""
    from scipy.special import betainc  # half a second that a help text need not wait for

    won, lost = map(round, _won_and_lost(r))
    return lost > won and float(betainc(lost, won + 1, 0.5)) <= 0.05


def _few(r: SilentReading, *, trained: bool) -> str:
    """Return why there is no interval; how many rows there are is said elsewhere in the line."""
    short = f"too few rows, since an interval needs at least {MIN_ROWS}"
    return short if r.rows < MIN_ROWS else too_few(r, trained=trained)


def _places(r: SilentReading) -> str:
    return f"{r.share:.1%} of {_before(r)}"


def _before(r: SilentReading) -> str:
    return f"{r.behind} tokens that were outranked before"


def _won_and_lost(r: SilentReading) -> tuple[float, float]:
    """Return how many tokens became the first choice, and how many are one no more."""
    shares = ((r.flipped, r.behind), (r.lost, r.tokens - r.behind))
    won, lost = (0.0 if math.isnan(share) else share * of for share, of in shares)
    return won, lost


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
