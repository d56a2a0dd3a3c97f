"""Special tokens among the rows' tokens, such as the end of an answer: told apart, since they are no words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sft.audit.rows import AuditRows
from lightning_sft.metrics.silent import SilentReading, TokenReading, read_silent

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


def read_special(
    rows: AuditRows, now: TokenReading, before: TokenReading | None, min_fall: float
) -> SpecialTokens | None:
    """Return the readings of special tokens and of all others; None where no special token is looked at."""
    tokenizer = rows.tokenizer
    chosen = torch.isin(rows.targets, torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.int64))
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
    """Return how special tokens fared beside all others; empty where none of them is, or still is, outranked."""
    special, words = found.special, found.words
    names = ", ".join(f"`{text}`" for text in found.texts)
    what = f"the end of the answer ({names})" if found.ends else f"special tokens ({names})"
    if not compared:
        rest = "" if words is None else f"; all other tokens: {words.outranked:.1%} of {words.tokens}"
        wrong = f"outranked at {special.outranked:.1%} of {special.tokens} places{rest}"
        return f"{what[0].upper()}{what[1:]}: {wrong}." if special.outranked > 0 else ""
    if not special.still_behind:
        return ""
    rest = "" if words is None else f"; of all other tokens, {words.still_behind} of {words.behind}"
    same = f", {special.failed} of them with a lower loss and behind the same token" if special.failed else ""
    still = f"{special.still_behind} still {'is' if special.still_behind == 1 else 'are'}{same}{rest}"
    places = f"Of {special.behind} places where {what} was outranked before, {still}."
    if not found.ends:
        return places
    always = "" if special.still_behind == special.tokens else " always"
    lead = f"It does not{always} stop where the data do."
    return f"{lead} {places} There the model goes on where the data end the answer."
