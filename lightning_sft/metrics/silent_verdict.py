"""What a reading of tokens means, in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from lightning_sft.held_out import MIN_ROWS
from lightning_sft.metrics.run_length import RunLength
from lightning_sft.metrics.silent import SilentReading
from lightning_sft.metrics.silent_words import LEFT_OUT, SPECIAL, Told, count, sentence
from lightning_sft.units import are, plural

SilentOutcome = Literal[
    "silent failure", "still outranked", "too early", "overconfident", "no failure", "undecided", "nothing to judge"
]
#: of the tokens outranked at the start, at least this share must have overtaken before all is called well
OVERTAKEN = 0.5
#: a mean NLL that is higher by so many nats than at the start speaks against more steps, however short the run was
ROSE = 0.1
#: how a verdict begins that gives none
_FAILS, _SURE = "Cannot tell whether it fails silently", "Cannot tell whether it is overconfident"


@dataclass(frozen=True)
class SilentVerdict:
    """The outcome and the sentence that gives its figures.

    Attributes:
        outcome: ``"silent failure"``: trained tokens got a lower loss and stayed behind the same competitor; ``"still
            outranked"``: that is not shown, but fewer than half of the trained tokens that were outranked at the start,
            special ones left out, are the first choice now; ``"too early"``: the run was too short to say either;
            ``"overconfident"``: tokens that were not trained are outranked more often than the model's own confidence
            says; ``"no failure"``: none of these; ``"undecided"``: too few trained tokens to tell; ``"nothing to
            judge"``: too few rows, no token that could fail, special tokens alone, or scores that are not finite.
        sentence: for people.
        without_loss: the same without the mean NLL of all tokens, for a page that gives it elsewhere.
        loss_rose: the mean NLL of the trained tokens, special ones left out, is higher than at the start, of an outcome
            ``"still outranked"``; of ``"too early"``, by `ROSE` or more.
        leaves_out: it rests on the tokens that are not special, and with the others its figures would be different.
    """

    outcome: SilentOutcome
    sentence: str
    without_loss: str = ""
    loss_rose: bool = False
    leaves_out: bool = False

    @property
    def failed(self) -> bool:
        """Whether something should be done."""
        return self.outcome in ("silent failure", "still outranked", "overconfident")


def judge(
    reading: SilentReading,
    name: str,
    *,
    trained: bool,
    plain: SilentReading | None = None,
    max_share: float = 0.1,
    length: RunLength | None = None,
    more: str = "",
    all_read: str = "",
) -> SilentVerdict:
    """Return the verdict on a set.

    On tokens that were trained, to stay behind the same competitor while the loss falls is a failure: the right token
    is known, and the model was told. Nor is all well where other words have taken the competitors' places: fewer than
    half of the outranked tokens becoming first choices is never called "no failure". Special tokens, such as the end of
    an answer, are soon learned and may be half of all tokens. So nothing is called well that is not so without them:
    that half is counted without them, and the share of silent failures both with and without them. On tokens that
    were not trained even a calibrated model is outranked at times, so only a positive excess counts, and only where its
    interval excludes 0.

    Args:
        reading: of one set.
        name: of the set, in words, such as ``"training tokens"``.
        trained: whether the set's tokens were trained on.
        plain: the reading of those tokens that are not special; None where none is special, or nobody can tell.
        max_share: the largest share of silent failures among the tokens outranked at the start that is no failure. It
            is one where the share's interval lies above it, and undecided where the interval holds it.
        length: of the run, which may have been too short to tell; None where the model is finished.
        more: what lets one look at more rows, in words, for a verdict that needs them.
        all_read: the rows that were read, in words, where there are no more, such as ``"all 8 training rows"``.
    """
    if not trained:
        return _on_held_out(reading, name)
    whole, without_loss = (
        _on_trained(Told(reading, plain, name, loss), max_share, length, more, all_read) for loss in (True, False)
    )
    return replace(whole, without_loss=without_loss.sentence)


def _on_held_out(r: SilentReading, name: str) -> SilentVerdict:
    if math.isnan(r.outranked):
        return SilentVerdict("nothing to judge", f"{_SURE} from the {name}: {_why_none(r)}.")
    odds = (
        f"{r.outranked:.1%} of {count(r.tokens, name)} are outranked, and by the model's own confidence it would be "
        f"{r.expected:.1%}: {abs(100 * r.excess):.1f} percentage points {'fewer' if r.excess < 0 else 'more'}"
    )
    if math.isnan(r.excess_low):
        return SilentVerdict("nothing to judge", f"{_SURE}: {too_few(r, trained=False)}. {odds}.")
    low, high = max(r.excess_low, -r.expected), min(r.excess_high, 1 - r.expected)  # no share lies outside 0 to 1
    odds += f" (95% interval of the difference {100 * low:+.1f} to {100 * high:+.1f})"
    if r.excess_low > 0:
        return SilentVerdict("overconfident", f"Overconfident: {odds}.")
    return SilentVerdict("no failure", f"No sign of overconfidence: {odds}.")


def _why_none(r: SilentReading) -> str:
    return "there are none" if r.tokens == 0 else "their scores are not finite"


def _on_trained(told: Told, max_share: float, length: RunLength | None, more: str, all_read: str) -> SilentVerdict:
    every, r = told.all, told.judged
    if nothing := _why_nothing(told, max_share):
        return SilentVerdict("nothing to judge", f"{_FAILS}{nothing}.")
    fails = [x for x in (r, every) if x.share_low > max_share]
    behind = r.flipped < OVERTAKEN
    enough = OVERTAKEN if behind and not fails else max_share  # that many have overtaken: there was time for it
    overtook = r.flipped if r.behind else every.flipped
    if length is not None and (short := length.too_short(overtook, enough)):
        seen = told.split(r if r.behind else every)
        early = f"Too early to tell silent failure: {short}. So far, after {length}, {seen}."
        return SilentVerdict("too early", early, loss_rose=r.nll - r.nll_before > ROSE)
    apart = told.differ(max_share)
    if fails:
        of_all = fails[0] is not r
        failure = f"Silent failure: {told.figures(max_share, of_all=of_all)}."
        return SilentVerdict("silent failure", failure, leaves_out=apart and not of_all)
    figures = told.figures(max_share)
    if behind:
        change = round(r.nll, 2) - round(r.nll_before, 2)
        moved = "the loss fell, but " if change < 0 else "the loss rose, and " if change > 0 else ""
        without = f", {LEFT_OUT}" if apart else ""
        lead = f"Still outranked: {moved}most right tokens that were behind at the start still are{without}."
        outcome: SilentOutcome = "still outranked"
        return SilentVerdict(outcome, f"{lead} {sentence(figures)}.", loss_rose=change > 0, leaves_out=apart)
    if max(r.share_high, every.share_high) > max_share:
        why = _undecided(told, max_share, more, all_read)
        return SilentVerdict("undecided", f"{why} {sentence(figures)}.", leaves_out=apart)
    lost = f"; of the first choices at the start, {every.lost:.1%} are not any more" if every.lost > 0 else ""
    return SilentVerdict("no failure", f"No silent failure: {figures}{lost}.", leaves_out=apart)


def _why_nothing(told: Told, max_share: float) -> str:
    """Return why nothing can be said of trained tokens, with what was seen; empty where something can."""
    every, r, name = told.all, told.judged, told.name
    if math.isnan(every.outranked):
        return f" from the {name}: {_why_none(every)}"
    if math.isnan(every.nll_before):
        return f" from the {name}: there is no reading of them from before training"
    if every.behind == 0:
        return f": none of {count(every.tokens, name)} was outranked at the start"
    if r.tokens == 0:
        return f": all {count(every.tokens, name)} {are(every.tokens)} {SPECIAL}. Seen: {told.split(every)}"
    if every.share_low > max_share:
        return ""
    if r.behind == 0:
        none = f"none of {count(r.tokens, name)} was outranked at the start, {LEFT_OUT}"
        return f": {none}. Seen with them: {told.split(every)}"
    if math.isnan(r.share_low):
        apart = "" if told.plain is None else f" ({LEFT_OUT})"
        return f": {too_few(r, trained=True)}{apart}. Seen: {told.split(r)}"
    return ""


def _undecided(told: Told, max_share: float, more: str, all_read: str) -> str:
    """Return why it is undecided, and what can be done about it, in sentences."""
    r = told.judged if told.differ(max_share) and told.judged.share_high > max_share else told.all
    few = f"{plural(r.behind, 'token')} {are(r.behind)} too few to rule out {max_share:.0%}"
    why = f"the interval holds the bound of {max_share:.0%}"
    if r.share == 0:
        nothing = "nothing" if told.all.flipped == 1 else "nothing but special tokens"
        why = f"{f'{nothing} is behind any more' if r.flipped == 1 else 'no token failed silently'}, but {few}"
    rows = f" These are {all_read}." if all_read else f" Watch more rows{f' ({more})' if more else ''}."
    return f"Undecided: {why}.{rows}"


def too_few(reading: SilentReading, *, trained: bool) -> str:
    """Return why a reading has no interval, in words.

    Args:
        reading: without an interval.
        trained: whether its share of silent failures is meant, which only rows with an outranked token tell about, and
            not its excess.
    """
    if trained and reading.rows >= MIN_ROWS:
        return (
            f"of {reading.rows} rows fewer than {MIN_ROWS} hold a token that was outranked at the start, and an "
            f"interval needs at least {MIN_ROWS} such rows"
        )
    rows = "1 row" if reading.rows == 1 else f"{reading.rows} rows"
    return f"{rows}; an interval needs at least {MIN_ROWS} rows"
