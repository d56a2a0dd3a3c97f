"""What the page tells beside the registered analysis: every figure a mean over runs, which share no draw.

Contexts of one run share its model, so an interval over contexts would be too narrow. A stage whose runs are replicates
has t-intervals over them; runs of a search share one draw and have none.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_sft.sweep.intervals import Interval, interval
from studies.cells import Cell
from studies.phantoms.analysis import KINDS, Outcome, outcomes
from studies.phantoms.design import BACKGROUND

#: from so many replicates on a share has an interval
ENOUGH = 3
FELL_NOT = "loss did not fall"


@dataclass(frozen=True)
class Rows:
    """The outcomes of some runs, those of contexts that began behind alone.

    Attributes:
        runs: one list for each run that finished.
        replicates: whether the runs are replicates, each with a draw of its own.
    """

    runs: tuple[tuple[Outcome, ...], ...]
    replicates: bool

    @property
    def contexts(self) -> int:
        """How many different contexts there are."""
        return len({one.number for row in self.runs for one in row})

    @property
    def seen(self) -> int:
        """Contexts times runs."""
        return sum(map(len, self.runs))

    def count(self, holds: Callable[[Outcome], float]) -> int:
        """Return a sum over all contexts of all runs."""
        return int(sum(holds(one) for row in self.runs for one in row))

    def share(self, holds: Callable[[Outcome], float]) -> Interval | None:
        """Return the mean over runs of a share of contexts."""
        return self._over([statistics.fmean(map(holds, row)) for row in self.runs if row])

    def took_part(self) -> Interval | None:
        """Return the mean over runs with jumps of the share of jumps in which the output rows took part."""
        return self._over([sum(o.embeddings for o in row) / sum(o.jumps for o in row) for row in self._jumping()])

    def cause(self) -> float | None:
        """Return the output rows' mean share in the cause of a jump, mean over runs with jumps."""
        found = []
        for row in self._jumping():
            known = [(o.share, o.jumps) for o in row if o.share is not None and o.jumps]
            if known:
                found.append(sum(share * jumps for share, jumps in known) / sum(jumps for _, jumps in known))
        return statistics.fmean(found) if found else None

    def _jumping(self) -> list[tuple[Outcome, ...]]:
        return [row for row in self.runs if any(o.jumps for o in row)]

    def _over(self, values: Sequence[float]) -> Interval | None:
        if not values:
            return None
        if self.replicates and len(values) >= ENOUGH:
            return interval(values)
        return Interval(statistics.fmean(values), None, None)


def rows_of(cells: Sequence[Cell], replicates: bool) -> Rows:
    """Return the outcomes of an arm's runs."""
    finished = [cell for cell in cells if cell.run.outcome == "finished"]
    return Rows(tuple(tuple(o for o in outcomes(cell.run) if o.behind) for cell in finished), replicates)


def kinds(rows: Rows) -> list[float]:
    """Return the parts of the share that failed silently, in the order of `KINDS`."""
    found = [rows.share(lambda o, kind=kind: o.silent and o.kind == kind) for kind in KINDS]  # type: ignore[misc]
    return [0.0 if one is None else one.mean for one in found]


def nll_change(cells: Sequence[Cell]) -> Interval | None:
    """Return the change of held-out NLL from start to end as a share of the start, over runs; None without any."""
    values = [cell.run.score(BACKGROUND) - 1 for cell in cells if cell.run.outcome == "finished"]
    return interval(values) if values else None


def upper_end(count: int, level: float = 0.95) -> float:
    """Return the upper end of the two-sided exact interval of a share of which none of ``count`` was seen."""
    return float(1 - ((1 - level) / 2) ** (1 / count))
