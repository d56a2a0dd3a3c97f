"""From cells to numbers: pure functions, registered before the cells that they judge."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_sft.compare.statistics import LEVEL, holm
from studies.cells import Cell
from studies.cure.design import AHEAD, BACKGROUND, BOUND, CONTROL, CURE, FIRST, PLACEBO, WEIGHTED, Block, Stage
from studies.findings import Finding, Runs, differences, finding, judged, scores


@dataclass(frozen=True)
class ArmRow:
    """What an arm has given in a block.

    Attributes:
        arm: its name.
        rate: that it was judged at; None before it is found.
        readings: log key -> mean over replicates; empty before all of them are there.
        minus_first: `AHEAD` minus that of NLL.
        collateral: background NLL in relation to the control run's, minus 1, as a finding over replicates.
        diverged: runs that diverged.
    """

    arm: str
    rate: float | None
    readings: dict[str, float]
    minus_first: Finding
    collateral: Finding
    diverged: int

    @property
    def at_equal_collateral(self) -> bool | None:
        """Whether the arm keeps to the bound; None before all replicates are there."""
        if self.diverged:
            return False
        if not self.collateral.complete or self.collateral.difference is None:
            return None
        return self.collateral.difference.mean <= BOUND - 1


READINGS = (AHEAD, "style/first", "style/margin", "style/flipped", "style/untouched_ahead", BACKGROUND,
            "drift/general/kl")  # fmt: skip


def collateral(runs: Runs, arm: str) -> dict[int, float]:
    """Return an arm's background NLL over the control run's, minus 1, by replicate; diverged runs are left out."""
    ours, control = runs.get(arm, {}), runs.get(CONTROL, {})
    both = [r for r in sorted(ours) if r in control and "finished" == ours[r].outcome == control[r].outcome]
    return {r: ours[r].score(BACKGROUND) / control[r].score(BACKGROUND) - 1 for r in both}


def arm_row(cells: Sequence[Cell], stage: Stage, block: Block, arm: str) -> ArmRow:
    """Return what an arm has given in a block."""
    runs = judged(cells, stage.name, block.name)
    mine = runs.get(arm, {})
    whole = len(mine) == stage.replicates
    finished = [run for run in mine.values() if run.outcome == "finished"]
    means = {key: statistics.fmean(run.score(key) for run in finished) for key in READINGS if whole and finished}
    rates = {c.rate for c in cells if (c.stage, c.block, c.kind, c.arm) == (stage.name, block.name, "judged", arm)}
    diverged = len(mine) - len(finished)
    return ArmRow(
        arm,
        next(iter(rates), None),
        means,
        finding(differences(runs, AHEAD, arm, FIRST), stage.replicates),
        finding(collateral(runs, arm), stage.replicates),
        diverged,
    )


@dataclass(frozen=True)
class Verdict:
    """What became of a hypothesis in a block.

    Attributes:
        name: ``H1`` to ``H3``.
        against: the arm that the margin is compared with.
        finding: difference of `AHEAD`.
        p_holm: adjusted over the three; None before all of them are complete.
        verdict: ``supported``, ``contradicted``, ``undecided``, or ``not complete``.
        why: what decided it where that is not the test alone.
    """

    name: str
    against: str
    finding: Finding
    p_holm: float | None
    verdict: str
    why: str = ""


AGAINST = {"H1": FIRST, "H2": WEIGHTED, "H3": PLACEBO}


def hypotheses(cells: Sequence[Cell], stage: Stage, block: Block) -> list[Verdict]:
    """Return the verdicts of a block; none is given before all cells of its arms are there."""
    runs = judged(cells, stage.name, block.name)
    found = {name: finding(differences(runs, AHEAD, CURE, other), stage.replicates) for name, other in AGAINST.items()}
    p = {name: one.p for name, one in found.items() if one.p is not None}
    complete = all(len(runs.get(arm, {})) == stage.replicates for arm in (CONTROL, CURE, *AGAINST.values()))
    if len(p) < len(found) or not complete:
        return [Verdict(name, AGAINST[name], one, None, "not complete") for name, one in found.items()]
    adjusted = holm(p)
    verdicts = []
    for name, one in found.items():
        assert one.difference is not None
        arms = [arm_row(cells, stage, block, arm) for arm in (CURE, AGAINST[name])]
        beyond = [row.arm for row in arms if not row.at_equal_collateral]
        verdict, why = "undecided", ""
        if beyond:
            why = f"not at equal collateral: {', '.join(beyond)}"
        elif adjusted[name] <= LEVEL:
            verdict = "supported" if one.difference.mean > 0 else "contradicted"
        verdicts.append(Verdict(name, AGAINST[name], one, adjusted[name], verdict, why))
    return verdicts


def claim(verdicts: Sequence[Verdict]) -> str:
    """Return what the verdicts of a block allow to be said, as it is registered."""
    found = {v.name: v.verdict for v in verdicts}
    if "not complete" in found.values():
        return "nothing yet: not all cells are there"
    if found["H2"] == found["H3"] == "supported":
        return "the margin cures: it does more than the same share of the gradient given to NLL on these tokens"
    if found["H1"] == "supported":
        return "weighting contested tokens cures, the margin is not needed"
    return "no cure was shown"


def share_of(runs: Runs, arm: str) -> dict[int, float]:
    """Return an arm's `AHEAD` by replicate; a run that diverged has 0."""
    return scores(runs, arm, AHEAD)
