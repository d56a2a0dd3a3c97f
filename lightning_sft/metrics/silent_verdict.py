"""What a reading of tokens means, in one sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lightning_sft.held_out import MIN_ROWS
from lightning_sft.metrics.run_length import RunLength
from lightning_sft.metrics.silent import SilentReading

SilentOutcome = Literal["silent failure", "too early", "overconfident", "no failure", "undecided", "nothing to judge"]
#: how a verdict begins that gives none
_FAILS, _SURE = "Cannot tell whether it fails silently", "Cannot tell whether it is overconfident"


@dataclass(frozen=True)
class SilentVerdict:
    """The outcome and the sentence that gives its figures.

    Attributes:
        outcome: ``"silent failure"``: trained tokens got a lower loss and stayed behind; ``"too early"``: the run was
            too short to say whether they do; ``"overconfident"``: tokens
            that were not trained are outranked more often than the model's own confidence says; ``"no failure"``:
            neither; ``"undecided"``: too few trained tokens to tell; ``"nothing to judge"``: too few rows, no token
            that could fail, or scores that are not finite.
        sentence: for people.
    """

    outcome: SilentOutcome
    sentence: str

    @property
    def failed(self) -> bool:
        """Whether something should be done."""
        return self.outcome in ("silent failure", "overconfident")


def judge(
    reading: SilentReading, name: str, *, trained: bool, max_share: float = 0.1, length: RunLength | None = None
) -> SilentVerdict:
    """Return the verdict on a set.

    On tokens that were trained, to stay behind the same competitor while the loss falls is a failure: the right token
    is known, and the model was told. On others even a calibrated model is outranked at times, so only a positive excess
    counts, and only where its interval excludes 0.

    Args:
        reading: of one set.
        name: of the set, in words, such as ``"training tokens"``.
        trained: whether the set's tokens were trained on.
        max_share: the largest share of silent failures among the tokens outranked at the start that is no failure. It
            is one where the share's interval lies above it, and undecided where the interval holds it.
        length: of the run, which may have been too short to tell; None where the model is finished.
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
    counts = (
        f"of {r.behind} {name} that were outranked at the start, {r.share:.1%} have a loss lower by more than "
        f"{r.min_fall:g} nats and are still behind the same competitor, and {r.flipped:.1%} have overtaken it "
        f"(mean NLL of all {r.tokens} tokens in the {r.rows} rows of this reading {r.nll_before:.2f} -> {r.nll:.2f})"
    )
    if math.isnan(r.share_low):
        return SilentVerdict("nothing to judge", f"{_FAILS}: {too_few(reading, trained=True)}. Seen: {counts}.")
    short = "" if length is None else length.too_short(r.flipped, max_share)
    if short:
        behind = f"So far, after {length}, {counts}"
        return SilentVerdict("too early", f"Too early to tell silent failure: {short}. {behind}.")
    counts += f"; 95% interval of the former {r.share_low:.1%} to {r.share_high:.1%}, bound {max_share:.0%}"
    if r.share_low > max_share:
        return SilentVerdict("silent failure", f"Silent failure: {counts}.")
    if r.share_high > max_share:
        return SilentVerdict("undecided", f"Undecided, watch more rows: {counts}.")
    return SilentVerdict("no failure", f"No silent failure: {counts}.")


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
