"""What became of watched tokens, in words, with special tokens and without them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lightning_sft.metrics.silent import SilentReading
from lightning_sft.units import plural, was

#: tokens by which nothing is called well
SPECIAL, LEFT_OUT = "special tokens, such as the end of an answer", "special tokens left out"
_PLURAL = re.compile(r"s\b")


@dataclass(frozen=True)
class Told:
    """What a verdict on trained tokens rests on, in words.

    Attributes:
        all: the reading of all tokens.
        plain: that of those which are not special; None if that is not known, or the same.
        name: of the tokens.
        loss: whether to give the mean NLL of all tokens.
    """

    all: SilentReading
    plain: SilentReading | None
    name: str
    loss: bool

    @property
    def judged(self) -> SilentReading:
        """The tokens by which "still outranked" is judged."""
        return self.all if self.plain is None else self.plain

    def figures(self, max_share: float, *, of_all: bool = False) -> str:
        """Return what became of the tokens: of those judged, or of all, and how it is with or without special ones."""
        r, other = (self.all, self.plain) if of_all else (self.judged, None if self.plain is None else self.all)
        if other is not None and not of_all and not self.differ(max_share):
            r, other = self.all, None
        first = f"{self.split(r)}{self._bounds(r, max_share)}"
        if other is None or not other.behind:
            return first
        lead = f"{SPECIAL}, left out" if of_all else f"with {SPECIAL}"
        loss = f" ({self._loss(other)})" if self.loss and other is self.all else ""
        return (
            f"{first}; {lead}, {other.flipped:.1%} of {other.behind} are the first choice now, and {other.share:.1%} "
            f"have a lower loss and are still behind the same competitor{loss}"
        )

    def differ(self, max_share: float) -> bool:
        """Return whether special tokens change what is told."""
        one, other = (
            (f"{r.share:.1%}", f"{r.flipped:.1%}", not r.share_high <= max_share) for r in (self.all, self.judged)
        )
        return one != other

    def split(self, r: SilentReading) -> str:
        """Return what became of the tokens outranked at the start; what became of none of them is left out."""
        parts = [
            f"{r.share:.1%} have a loss lower by more than {r.min_fall:g} nats and are still behind the same "
            "competitor",
            f"{r.displaced:.1%} have such a loss and are behind another word than at the start"
            if r.displaced > 0
            else "",
            f"{r.unlearned:.1%} have no such loss and are still behind" if r.unlearned > 0 else "",
        ]
        apart = "" if r is self.all else f" {LEFT_OUT},"
        # on a page that gives the loss of all tokens, that of some of them is news
        loss = f" ({self._loss(r)})" if self.loss or r is not self.all else ""
        return (
            f"of {count(r.behind, self.name)} that {was(r.behind)} outranked at the start,{apart} "
            f"{', '.join(filter(None, parts))}, and {r.flipped:.1%} are the first choice now{loss}"
        )

    def _loss(self, r: SilentReading) -> str:
        tokens = plural(r.tokens, "token") if r is self.all else f"{r.tokens} that are not special"
        rows = "one row" if r.rows == 1 else f"{r.rows} rows"
        return f"mean NLL of all {tokens} in the {rows} of this reading {r.nll_before:.2f} -> {r.nll:.2f}"

    @staticmethod
    def _bounds(r: SilentReading, max_share: float) -> str:
        if math.isnan(r.share_low):
            return ""
        return f"; 95% interval of the first share {r.share_low:.1%} to {r.share_high:.1%}, bound {max_share:.0%}"


def count(number: int, things: str) -> str:
    """Return a number of things in words.

    Args:
        number: of them.
        things: in the plural, the first word of which that ends in s is the one to change.

    >>> count(1, "tokens of other rows"), count(2, "rows")
    ('1 token of other rows', '2 rows')
    """
    return f"{number} {re.sub(_PLURAL, '', things, count=1) if number == 1 else things}"


def sentence(text: str) -> str:
    """Return a text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]
