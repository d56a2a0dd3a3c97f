"""From cells of any study to paired differences: pure functions, registered before the cells that they judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightning_sft.compare.result import RunResult
from lightning_sft.compare.statistics import fill_diverged, paired_test
from lightning_sft.errors import UserError
from lightning_sft.sweep.intervals import Interval, interval
from studies.cells import Cell

#: arm -> replicate -> what the run has given
Runs = Mapping[str, Mapping[int, RunResult]]


def judged(cells: Iterable[Cell], stage: str, block: str) -> dict[str, dict[int, RunResult]]:
    """Return the judged runs of a block, by arm and replicate.

    Raises:
        UserError: an arm was judged at two rates in one replicate, or at different rates in different ones.
    """
    found: dict[str, dict[int, RunResult]] = {}
    at: dict[str, Cell] = {}
    for cell in cells:
        if (cell.stage, cell.block, cell.kind) == (stage, block, "judged"):
            first = at.setdefault(cell.arm, cell)
            if first.rate != cell.rate:
                raise UserError(f"{first.file} and {cell.file} judge one arm at two rates. Remove those of one rate.")
            found.setdefault(cell.arm, {})[cell.replicate] = cell.run
    return found


def scores(runs: Runs, arm: str, key: str) -> dict[int, float]:
    """Return an arm's shares by replicate; a run that diverged has 0, the worst that a share can be."""
    row = {replicate: run.score(key) for replicate, run in runs.get(arm, {}).items()}
    filled = fill_diverged({arm: list(row.values())}, higher=True, bound=0.0)
    return dict(zip(row, filled.values[arm], strict=True))


def differences(runs: Runs, key: str, arm: str, first: str, first_key: str | None = None) -> dict[int, float]:
    """Return ``arm`` minus ``first`` by replicate, where both are there.

    Args:
        runs: of one block.
        key: of the reading.
        arm: name of the arm.
        first: name of the arm that it is compared with.
        first_key: another reading of that arm.
    """
    ours, theirs = scores(runs, arm, key), scores(runs, first, first_key or key)
    return {replicate: ours[replicate] - theirs[replicate] for replicate in sorted(ours) if replicate in theirs}


@dataclass(frozen=True)
class Finding:
    """A paired difference, as far as it is there.

    Attributes:
        values: by replicate.
        expected: how many replicates the design has.
        difference: their mean with its 95% t-interval; None before the first one.
        p: of the paired t-test; None before all are there.
    """

    values: dict[int, float]
    expected: int
    difference: Interval | None
    p: float | None

    @property
    def complete(self) -> bool:
        """Whether every replicate is there."""
        return len(self.values) == self.expected


def finding(values: Mapping[int, float], expected: int) -> Finding:
    """Return a finding; of one that is incomplete nothing is tested, and replicates beyond the design do not count."""
    kept = {replicate: values[replicate] for replicate in sorted(values) if replicate < expected}
    row = list(kept.values())
    complete = len(row) == expected
    return Finding(kept, expected, interval(row) if row else None, paired_test(row) if complete else None)
