"""How right a generated answer is: scorers that sources name, and the contract of one's own."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

from typing_extensions import override

from lightning_sft.errors import UserError

Score = Literal["exact_match", "ignore_case", "contains", "last_number", "edit_similarity", "jaro_winkler"]
"""Name of a scorer, see `SCORERS`."""
#: a whole or decimal number, commas between thousands, perhaps an exponent; a minus after a digit or letter is no sign
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]])[-\u2212+])?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d{1,3})?"
)


class Scorer(ABC):
    """How right an answer is; a subclass of yours is the ``score`` of a source by its ``class_path``."""

    @abstractmethod
    def score(self, answer: str, reference: str) -> float | None:
        """Return a number from 0 (wrong) to 1 (right), or None where the row cannot be judged.

        Args:
            answer: what the model wrote, without special tokens, as it stands.
            reference: the row's own answer, as it stands.
        """


class NamedScorer(Scorer):
    """One of `SCORERS`.

    Args:
        name: which.

    Raises:
        UserError: an unknown name; lists the known ones.
    """

    def __init__(self, name: str) -> None:
        if name not in SCORERS:
            raise UserError(
                f"score is {name!r}. Allowed: {', '.join(SCORERS)}, or a class of yours that derives from "
                "lightning_sft.data.Scorer, by its class_path."
            )
        self.name = name

    @override
    def score(self, answer: str, reference: str) -> float | None:
        return SCORERS[self.name](answer.strip(), reference.strip())


def as_scorer(score: str | Scorer | None) -> Scorer | None:
    """Return the scorer of a setting.

    Raises:
        UserError: neither a known name nor a `Scorer`.
    """
    if score is None or isinstance(score, Scorer):
        return score
    return NamedScorer(str(score))


def scored(scorer: Scorer | None, answer: str, reference: str | None) -> float | None:
    """Return the score of an answer; None without a scorer, or in a row without a reference.

    Raises:
        UserError: the scorer gave something else than a number from 0 to 1 or None.
    """
    if scorer is None or reference is None:
        return None
    value = scorer.score(answer, reference)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number <= 1:  # NaN is not either
        raise UserError(
            f"The scorer {type(scorer).__name__} gave {value!r} for the answer {answer[:80]!r} to a row with the "
            f"reference {reference[:80]!r}. Allowed: a number from 0 (wrong) to 1 (right), or None for a row that "
            "cannot be judged."
        )
    return number


def _contains(answer: str, reference: str) -> float:
    """Return whether the reference stands in the answer as whole words and numbers, upper and lower case alike."""
    if not reference:
        return float(not answer)
    before = r"(?<![A-Za-z0-9])(?<!\d[.,])" if re.match(r"[A-Za-z0-9]", reference) else ""
    after = r"(?![A-Za-z0-9])(?![.,]\d)" if re.search(r"[A-Za-z0-9]$", reference) else ""
    return float(re.search(before + re.escape(reference.casefold()) + after, answer.casefold()) is not None)


def last_number(text: str) -> Decimal | None:
    """Return the value of the last number in a text, None without one."""
    found = [match for match in _NUMBER.findall(text) if any(c.isdigit() for c in match)]
    return Decimal(found[-1].replace(",", "").replace("\u2212", "-")) if found else None


def _last_number(answer: str, reference: str) -> float | None:
    expected = last_number(reference)
    return None if expected is None else float(last_number(answer) == expected)


def _edit_similarity(answer: str, reference: str) -> float:
    from rapidfuzz.distance import Levenshtein

    return float(Levenshtein.normalized_similarity(answer, reference))


def _jaro_winkler(answer: str, reference: str) -> float:
    from rapidfuzz.distance import JaroWinkler

    return float(JaroWinkler.similarity(answer, reference))


#: name -> score of an answer and a reference, both without white space around them
SCORERS: dict[str, Callable[[str, str], float | None]] = {
    "exact_match": lambda answer, reference: float(answer == reference),
    "ignore_case": lambda answer, reference: float(answer.casefold() == reference.casefold()),
    "contains": _contains,
    "last_number": _last_number,
    "edit_similarity": _edit_similarity,
    "jaro_winkler": _jaro_winkler,
}
