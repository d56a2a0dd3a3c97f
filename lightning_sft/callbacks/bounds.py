"""Bounds on logged values: absolute, or relative to where the run started."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lightning_sft.errors import UserError

_FORMS = (
    "a number (the most it may be), '<= NUMBER', '>= NUMBER', '+N%' (it may rise by so much from the start) or '-N%' "
    "(it may fall by so much)"
)

#: relative; logged values are fp32
ROUNDING = 1e-6


@dataclass(frozen=True)
class Bound:
    """What a value must keep.

    Attributes:
        key: log key of the value.
        upper: whether it must not be above the limit; else not below it.
        amount: the limit or, for relative ones, the share of the start's absolute value, not negative.
        relative: whether the limit is counted from the start.
    """

    key: str
    upper: bool
    amount: float
    relative: bool = False

    @classmethod
    def parse(cls, key: str, given: str | float) -> Bound:
        """Return the bound that a setting stands for.

        Args:
            key: log key.
            given: 2.5, "<= 2.5", ">= 0.3", "+2%" or "-5%".

        Raises:
            UserError: anything else.
        """
        text = str(given).strip()
        share = re.fullmatch(r"([+-])\s*(\d+(?:\.\d*)?|\.\d+)\s*%", text)
        if share and not isinstance(given, bool):
            return cls(key, share[1] == "+", float(share[2]) / 100, relative=True)
        sign, number = re.fullmatch(r"([<>]=)?\s*(.*)", text, re.S).groups()  # type: ignore[union-attr]  # matches all
        try:
            value = math.nan if isinstance(given, bool) else float(number)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"subject_to: {key} is {given!r}. Allowed: {_FORMS}.")
        return cls(key, sign != ">=", value)

    def limit(self, start: float | None) -> float:
        """Return the limit, given the value at the start; nan where that is needed and unknown."""
        if not self.relative:
            return self.amount
        return math.nan if start is None else start + (1 if self.upper else -1) * self.amount * abs(start)

    def keeps(self, value: float, start: float | None) -> bool:
        """Return whether a value keeps the bound; one that is not finite does not."""
        limit = self.limit(start)
        slack = ROUNDING * abs(limit)
        return math.isfinite(value) and (value <= limit + slack if self.upper else value >= limit - slack)

    def describe(self, start: float | None) -> str:
        """Return the bound in words, such as ``drift/general/nll <= 2.31 (+2% of 2.26)``."""
        said = f"{self.key} {'<=' if self.upper else '>='} {self.limit(start):.5g}"
        if not self.relative or start is None:
            return said
        return f"{said} ({'+' if self.upper else '-'}{100 * self.amount:g}% of {start:.5g} at the start)"
