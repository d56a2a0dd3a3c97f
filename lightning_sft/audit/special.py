"""Special tokens among the rows' tokens, such as the end of an answer: told apart, since they are no words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sft.audit.rows import AuditRows
from lightning_sft.metrics.silent import SilentReading, TokenReading, read_silent
from lightning_sft.metrics.silent_words import sentence
from lightning_sft.units import are, plural

NAMED = 3  # special tokens that are named


@dataclass(frozen=True)
class SpecialTokens:
    """The rows' special tokens and the rest of them.

    Attributes:
        texts: the commonest special tokens, at most 3.
        ends: whether they are the end of an answer alone.
        special: the reading of the special tokens.
        words: of all others; None if there are none.
    """

    texts: list[str]
    ends: bool
    special: SilentReading
    words: SilentReading | None

    @property
    def plain(self) -> SilentReading:
        """The reading of all others, of no token where there are none."""
        none = math.nan
        return self.words or SilentReading(tokens=0, rows=0, nll=none, outranked=none, expected=none, excess=none)


def read_special(
    rows: AuditRows, now: TokenReading, before: TokenReading | None, min_fall: float, special: Sequence[int]
) -> SpecialTokens | None:
    """Return the readings of special tokens, by their ids, and of all others; None where no special one is looked at.

    Args:
        rows: what was read.
        now: the second model's reading.
        before: the first one's; None without.
        min_fall: nats by which a token's NLL must have fallen.
        special: see `special_ids`.
    """
    tokenizer = rows.tokenizer
    chosen = torch.isin(rows.targets, torch.tensor(special, dtype=torch.int64))
    if not bool(chosen.any()):
        return None
    ids, counts = rows.targets[chosen].unique(return_counts=True)
    common = ids[counts.argsort(descending=True, stable=True)][:NAMED].tolist()

    def of(mask: Tensor) -> SilentReading:
        return read_silent(now.at(mask), rows.row[mask], None if before is None else before.at(mask), min_fall)

    return SpecialTokens(
        texts=[str(tokenizer.decode([i])) for i in common],
        ends=ids.tolist() == [tokenizer.eos_token_id],
        special=of(chosen),
        words=None if bool(chosen.all()) else of(~chosen),
    )


def special_sentence(found: SpecialTokens, *, compared: bool) -> str:
    """Return how special tokens fared beside all others, the worse of the two first; empty where none is outranked."""
    special, words = found.special, found.words
    names = ", ".join(f"`{text}`" for text in found.texts)
    what = f"the end of the answer ({names})" if found.ends else f"special tokens ({names})"
    if not compared:
        rest = "" if words is None else f"; all other tokens: {words.outranked:.1%} of {words.tokens}"
        wrong = f"outranked at {special.outranked:.1%} of {plural(special.tokens, 'place')}{rest}"
        return f"{sentence(what)}: {wrong}." if special.outranked > 0 else ""
    if not special.still_behind:
        return ""
    same = f", {special.failed} of them with a lower loss and behind the same token" if special.failed else ""
    still = f"{special.still_behind} still {are(special.still_behind)}{same}"
    places = f"of {plural(special.behind, 'place')} where {what} was outranked before, {still}"
    on = "there the model goes on where the data end the answer" if found.ends else ""
    if words is not None and words.behind and words.flipped < special.flipped:
        behind, others = words.still_behind, f"Of {plural(words.behind, 'token')} that are not special"
        return f"{others}, {behind} still {are(behind)} outranked; {places}{f' ({on})' if on else ''}."
    rest = "" if words is None else f"; of all other tokens, {words.still_behind} of {words.behind}"
    if not found.ends:
        return f"{sentence(places)}{rest}."
    always = "" if special.still_behind == special.tokens else " always"
    return f"It does not{always} stop where the data do. {sentence(places)}{rest}. {sentence(on)}."
