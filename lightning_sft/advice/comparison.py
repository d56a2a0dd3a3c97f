"""What `lightning compare` will cost, by its own defaults."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sft.compare.design import Design
from lightning_sft.compare.rates import RateSearch

#: options of a comparison that is a first look
FIRST_LOOK = "--points 3 --refine 0 --replicates 3"


@dataclass(frozen=True)
class Comparison:
    """Fits of a comparison, while no best rate lies at an end of the range that is searched.

    Attributes:
        arms: that are compared.
        trials: fits of each arm that search for its rate.
        replicates: fits of each arm that are judged.
    """

    arms: int
    trials: int
    replicates: int

    @classmethod
    def usual(cls, arms: int) -> Comparison:
        """Return the one that `lightning compare` makes unless it is told otherwise."""
        search = RateSearch()
        return cls(arms, (search.points + 2 * search.refine) * Design.search_replicates, Design.replicates)

    @classmethod
    def first_look(cls, arms: int) -> Comparison:
        """Return the one that `FIRST_LOOK` makes."""
        return cls(arms, 3, 3)

    @property
    def fits(self) -> int:
        """Fits in all."""
        return self.arms * (self.trials + self.replicates)
