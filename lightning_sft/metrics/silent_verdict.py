"""What a reading of tokens means, in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lightning_sft.held_out import MIN_ROWS
from lightning_sft.metrics.run_length import RunLength
from lightning_sft.metrics.silent import SilentReading

SilentOutcome = Literal[
    "silent failure", "still outranked", "too early", "overconfident", "no failure", "undecided", "nothing to judge"
]
#: of the tokens outranked at the start, at least this share must have overtaken before all is called well
OVERTAKEN = 0.5
#: how a verdict begins that gives none
_FAILS, _SURE = "Cannot tell whether it fails silently", "Cannot tell whether it is overconfident"


@dataclass(frozen=True)
class SilentVerdict:
    """The outcome and the sentence that gives its figures.

    Attributes:
        outcome: ``"silent failure"``: trained tokens got a lower loss and stayed behind the same competitor; ``"still
            outranked"``: that is not shown, but fewer than half of the trained tokens that were outranked at the start
            are the first choice now; ``"too early"``: the run was too short to say either; ``"overconfident"``: tokens
            that were not trained are outranked more often than the model's own confidence says; ``"no failure"``: none
            of these; ``"undecided"``: too few trained tokens to tell; ``"nothing to judge"``: too few rows, no token
            that could fail, or scores that are not finite.
        sentence: for people.
        loss_rose: the trained tokens' mean NLL is higher than at the start, of an outcome ``"still outranked"``.
    """

    outcome: SilentOutcome
    sentence: str
    loss_rose: bool = False

    @property
    def failed(self) -> bool:
        """Whether something should be done."""
        return self.outcome in ("silent failure", "still outranked", "overconfident")


def judge(
    reading: SilentReading,
    name: str,
    *,
    trained: bool,
    max_share: float = 0.1,
    length: RunLength | None = None,
    more: str = "",
) -> SilentVerdict:
    """Return the verdict on a set.

    On tokens that were trained, to stay behind the same competitor while the loss falls is a failure: the right token
    is known, and the model was told. Nor is all well where other words have taken the competitors' places: fewer than
    half of the outranked tokens becoming first choices is never called "no failure". On tokens that were not trained
    even a calibrated model is outranked at times, so only a positive excess counts, and only where its interval
    excludes 0.

    Args:
        reading: of one set.
        name: of the set, in words, such as ``"training tokens"``.
        trained: whether the set's tokens were trained on.
        max_share: the largest share of silent failures among the tokens outranked at the start that is no failure. It
            is one where the share's interval lies above it, and undecided where the interval holds it.
        length: of the run, which may have been too short to tell; None where the model is finished.
        more: what lets one look at more rows, in words, for a verdict that needs them.
    """
    r = reading
    if math.isnan(r.outranked):
        why = "there are none" if r.tokens == 0 else "their scores are not finite"
        return SilentVerdict("nothing to judge", f"{_FAILS if trained else _SURE} from the {name}: {why}.")
    if not trained:
        odds = (
            f"{r.outranked:.1%} of {r.tokens} {name} are outranked, and by the model's own confidence it would be "
            f"{r.expected:.1%}: {abs(100 * r.excess):.1f} percentage points {'fewer' if r.excess < 0 else 'more'}"
        )
        if math.isnan(r.excess_low):
            few = f"{_SURE}: {too_few(reading, trained=False)}"
            return SilentVerdict("nothing to judge", f"{few}. {odds}.")
        odds += f" (95% interval of the difference {100 * r.excess_low:+.1f} to {100 * r.excess_high:+.1f})"
        if r.excess_low > 0:
            return SilentVerdict("overconfident", f"Overconfident: {odds}.")
        return SilentVerdict("no failure", f"No sign of overconfidence: {odds}.")
    if math.isnan(r.nll_before):
        why = "there is no reading of them from before training"
        return SilentVerdict("nothing to judge", f"{_FAILS} from the {name}: {why}.")
    if r.behind == 0:
        return SilentVerdict("nothing to judge", f"{_FAILS}: none of {r.tokens} {name} was outranked at the start.")
    if math.isnan(r.share_low):
        few = f"{_FAILS}: {too_few(reading, trained=True)}"
        return SilentVerdict("nothing to judge", f"{few}. Seen: {_split(r, name)}.")
    failed, behind = r.share_low > max_share, r.flipped < OVERTAKEN
    enough = OVERTAKEN if behind and not failed else max_share  # that many have overtaken: there was time for it
    if length is not None and (short := length.too_short(r.flipped, enough)):
        early = f"Too early to tell silent failure: {short}. So far, after {length}, {_split(r, name)}."
        return SilentVerdict("too early", early)
    bounds = f"95% interval of the first share {r.share_low:.1%} to {r.share_high:.1%}, bound {max_share:.0%}"
    told = f"{_split(r, name)}; {bounds}"
    if failed:
        return SilentVerdict("silent failure", f"Silent failure: {told}.")
    if behind:
        change = round(r.nll, 2) - round(r.nll_before, 2)
        moved = "the loss fell, but " if change < 0 else "the loss rose, and " if change > 0 else ""
        lead = f"Still outranked: {moved}most right tokens that were behind at the start still are."
        return SilentVerdict("still outranked", f"{lead} {told[0].upper()}{told[1:]}.", loss_rose=change > 0)
    if r.share_high > max_share:
        where = f" ({more})" if more else ""
        return SilentVerdict("undecided", f"Undecided, watch more rows{where}: {told}.")
    lost = f"; of the first choices at the start, {r.lost:.1%} are not any more" if r.lost > 0 else ""
    return SilentVerdict("no failure", f"No silent failure: {told}{lost}.")


def _split(r: SilentReading, name: str) -> str:
    """Return what became of the tokens outranked at the start; what became of none of them is left out."""
    parts = [
        f"{r.share:.1%} have a loss lower by more than {r.min_fall:g} nats and are still behind the same competitor",
        f"{r.displaced:.1%} have such a loss and are behind another word than at the start" if r.displaced > 0 else "",
        f"{r.unlearned:.1%} have no such loss and are still behind" if r.unlearned > 0 else "",
    ]
    rows = "one row" if r.rows == 1 else f"{r.rows} rows"
    return (
        f"of {r.behind} {name} that were outranked at the start, {', '.join(filter(None, parts))}, and {r.flipped:.1%} "
        f"are the first choice now (mean NLL of all {r.tokens} tokens in the {rows} of this reading "
        f"{r.nll_before:.2f} -> {r.nll:.2f})"
    )


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
