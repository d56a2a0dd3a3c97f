"""The first line of the page: fine, a failure, trained too little, or nothing that can be told, and why."""

from __future__ import annotations

import math

from lightning_sft.audit.render import as_code
from lightning_sft.audit.result import Audit
from lightning_sft.held_out import MIN_ROWS
from lightning_sft.metrics.silent import SilentReading
from lightning_sft.metrics.silent_verdict import SilentVerdict, too_few
from lightning_sft.metrics.silent_words import LEFT_OUT, SPECIAL
from lightning_sft.units import are, plural, was

#: a model is almost unchanged where on text outside the task its predictions moved by less than this (nats per token),
SAME_KL = 1e-3
#: no more than this share of first choices is another, there or in the rows,
SAME_CHOICES = 0.005
#: and the loss of the rows moved by less than this (nats per token), without a guard set by less than the second
SAME_LOSS, SAME_LOSS_ALONE = 0.5, 0.05
#: it has forgotten where there its loss rose by this much or more (nats per token)
FORGOTTEN = 0.1

_FINE = "Fine: "


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


def has_forgotten(audit: Audit) -> bool:
    """Return whether the loss on the guard set rose by much; False without one, or where scores are not finite."""
    f = audit.forgetting
    return f is not None and f.nll_before is not None and f.nll - f.nll_before >= FORGOTTEN


def headline(audit: Audit) -> str:
    """Return the verdict in a line, with how many rows and tokens it stands on."""
    r = audit.silent
    read = f"{plural(r.rows, 'row')}, {plural(r.tokens, 'token')}"
    if is_almost_unchanged(audit):
        return f"{_unchanged(audit)} ({read})."
    forgot = _forgot(audit)
    parts = [_said(audit, verdict) for verdict in audit.verdicts]
    if len(parts) == 1:
        return f"{_together(parts[0], forgot, read)}."
    if len(set(parts)) == 1:
        return f"{_together(parts[0], forgot, read)}, whether or not it was trained on these rows."
    known = f"it is not known whether the model was trained on these rows ({read})"
    both = f"If it was: {_lower(parts[0])}. If it was not: {_lower(parts[1])}."
    also = f" Either way {forgot}." if forgot else ""
    return f"Cannot tell whether it fails silently: {known}. {both}{also}"


def _together(part: str, forgot: str, read: str) -> str:
    """Return a verdict with what was forgotten: a model that has forgotten is never called fine."""
    if not forgot:
        return f"{part} ({read})"
    if part.startswith(_FINE):
        return f"Not fine, {forgot}. On the rows: {part.removeprefix(_FINE)} ({read})"
    return f"{part} ({read}). Besides, {forgot}"


def _forgot(audit: Audit) -> str:
    """Return what was forgotten; empty where it is little."""
    f = audit.forgetting
    if not has_forgotten(audit) or f is None or f.nll_before is None:
        return ""
    changed = "" if f.changed is None else f", and the first choice changed at {f.changed:.1%}"
    tokens = f"{plural(f.tokens, 'token')} of other text (guard set {as_code(f.name)})"
    return f"it forgot: on {tokens} the loss rose by {f.nll - f.nll_before:.3f} nats per token{changed}"


def _unchanged(audit: Audit) -> str:
    r, f = audit.silent, audit.forgetting
    label = "Trained too little: the model" if audit.trained == "yes" else "The model"
    choices = f"another first choice at {sum(_won_and_lost(r)):.0f} of {plural(r.tokens, 'place')}"
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
    r = audit.plain if verdict.leaves_out else audit.silent
    apart = f", {LEFT_OUT}" if verdict.leaves_out else ""
    as_trained = audit.before is not None and audit.trained != "no" and verdict is audit.verdicts[0]
    if audit.is_broken:
        return "Cannot tell anything: scores are not finite"
    if verdict.outcome == "silent failure":
        return f"Silent failure: {_places(r)}{apart} have a lower loss, and the same wrong token is still ahead"
    if verdict.outcome == "overconfident":
        return "Overconfident: the first choice is wrong more often than its probability says"
    if verdict.outcome == "undecided":
        return f"Cannot tell {_undecided(audit, r, apart)}"
    if verdict.outcome == "nothing to judge":
        if as_trained and r.behind == 0:
            return "Cannot tell whether it fails silently: no token was outranked before, so none could"
        plain = audit.special.plain if as_trained and audit.special else r
        if not plain.behind:
            none = f"no token was outranked before, {LEFT_OUT}" if plain.tokens else f"all are {SPECIAL}"
            return f"Cannot tell whether it fails silently: {none}"
        what = "fails silently" if as_trained else "is overconfident"
        return f"Cannot tell whether it {what}: {_few(plain, trained=as_trained)}"
    if not as_trained:
        return f"{_FINE}the first choice is wrong no more often than its probability says"
    change, _, high = audit.nll_change
    if loss_rose(audit):
        return "Not fine: the loss on the rows that it was trained on rose"
    if change >= 0 or high >= 0:
        return "Trained too little: the loss on the rows that it was trained on did not clearly fall"
    if verdict.outcome == "still outranked":
        others = f", {r.displaced:.1%} behind another word than before" if r.displaced > 0 else ""
        moved = f"the loss fell, but {'that of these tokens rose: ' if verdict.loss_rose else ''}"
        return f"Still outranked: {moved}{r.still_behind} of {_before(r)} still {are(r.still_behind)}{apart}{others}"
    for tokens in (audit.plain, audit.silent):
        if _more_are_outranked(tokens):
            which = f", {LEFT_OUT}" if tokens is not audit.silent else ""
            lost = f"as {tokens.lost:.1%} of the first choices were lost"
            return f"Not fine: more tokens are outranked than before{which}, {lost}"
    return f"{_FINE}no sign of silent failure{_exact(audit)}"


def _undecided(audit: Audit, r: SilentReading, apart: str) -> str:
    """Return why it is undecided, and what would help, if anything does."""
    few = f"whether it fails silently: {_places(r)}{apart} look like it, too few to be sure"
    if r.share == 0:
        few = f"for certain: no token failed silently, but {_before(r)}{apart} {are(r.behind)} too few to rule it out"
    if audit.rows < audit.total_rows:
        return f"yet {few}. Read more rows (--rows)"
    return few if audit.set == "train" else f"yet {few}. Read more rows (--data)"


def _exact(audit: Audit) -> str:
    """Return how many of the answers are exact, which may be few where no token failed silently."""
    now = audit.after
    if not now.answers:
        return ""
    return f"; greedy decoding writes {round(now.exact * now.answers)} of {plural(now.answers, 'answer')} exactly"


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
    return f"{plural(r.behind, 'token')} that {was(r.behind)} outranked before"


def _won_and_lost(r: SilentReading) -> tuple[float, float]:
    """Return how many tokens became the first choice, and how many are one no more."""
    shares = ((r.flipped, r.behind), (r.lost, r.tokens - r.behind))
    won, lost = (0.0 if math.isnan(share) else share * of for share, of in shares)
    return won, lost


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
