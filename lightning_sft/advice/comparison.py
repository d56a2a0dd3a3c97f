"""What `lightning compare` will cost, by its own defaults."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_sft.compare.design import Design
from lightning_sft.compare.rates import RateSearch
from lightning_sft.held_out import MIN_ROWS

#: options of a comparison that is a first look
FIRST_LOOK = "--points 3 --refine 0 --replicates 3"
#: the share of the training rows that judges a comparison of a run without validation rows, and the option for it
JUDGED_SHARE = 0.1
JUDGED = f"--data.val_split {JUDGED_SHARE}"


def too_few_to_compare(train: float | None, val: float | None) -> bool:
    """Return whether a comparison would have too few rows to learn from, or to be judged by.

    Args:
        train: training rows; None if unknown.
        val: validation rows; None where there are none, and a share of the training rows judges.
    """
    judged = val if val is not None or train is None else JUDGED_SHARE * train
    return (train is not None and train < MIN_ROWS) or (judged is not None and judged < MIN_ROWS)


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
