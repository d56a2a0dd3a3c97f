"""From cells to numbers: pure functions, registered before the cells that they judge."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_sft.compare.result import RunResult
from lightning_sft.compare.statistics import LEVEL, holm
from lightning_sft.sweep.intervals import Interval, interval
from studies.cells import Cell
from studies.findings import Finding, Runs, differences, finding, judged
from studies.phantoms.arms import FULL
from studies.phantoms.design import (
    ALONE,
    BACKGROUND,
    BOUND,
    CONTEXTS,
    EMBEDDINGS,
    EQUAL,
    FAILED,
    FAST,
    FLIPPED,
    HALF,
    LEAST,
    LEAST_JUMPED,
    MIXED,
    MOST,
    PLANTED,
    PLANTED_PHANTOM,
    SCORE,
    STAGES,
    TENTH,
    Block,
    Stage,
)
from studies.phantoms.watch import MODES, OUTCOMES
from studies.phantoms.watch import SILENT as SILENT_OUTCOMES

MAIN, RUSHED, AMONG = STAGES["confirmatory"], STAGES["fast"], STAGES["mixed"]


@dataclass(frozen=True)
class Outcome:
    """What became of one context in one run; fields as in `studies.phantoms.watch.of_context`."""

    number: int
    shipped: bool
    behind: bool
    outcome: str
    modes: tuple[str, ...]
    jumps: int
    embeddings: int
    share: float | None

    @property
    def silent(self) -> bool:
        """Whether the right word is behind still although the loss fell."""
        return self.behind and self.outcome in SILENT_OUTCOMES

    @property
    def kind(self) -> str:
        """The kind of a silent failure."""
        if self.outcome == "stopped early":
            return self.outcome
        return {0: "neither", 2: "both"}.get(len(self.modes), self.modes[0] if self.modes else "")


KINDS = ("kinematic", "structural", "both", "neither", "stopped early")


def outcomes(run: RunResult) -> list[Outcome]:
    """Return what became of each context; nothing of a run that diverged."""
    if run.outcome != "finished":
        return []
    found: dict[str, dict[str, float]] = {}
    for key, value in run.readings.items():
        room, _, rest = key.partition("/")
        if room == "context":
            place, _, name = rest.partition("/")
            found.setdefault(place, {})[name] = value
    return [
        Outcome(
            int(v["number"]), bool(v["shipped"]), bool(v["behind"]), OUTCOMES[int(v["outcome"])], MODES[int(v["mode"])],
            int(v["jumps"]), int(v["embeddings"]), v.get("share"),
        )
        for _, v in sorted(found.items())
    ]  # fmt: skip


# ---------------------------------------------------------------------- over contexts


@dataclass(frozen=True)
class Shares:
    """How often contexts that began behind failed silently, each context counted once however many runs it was in.

    Attributes:
        contexts: how many.
        seen: contexts times runs.
        silent: mean over contexts of their share of silent failures, with its t-interval over contexts; None without
            any context.
        kinds: kind of failure -> its part of that mean.
    """

    contexts: int
    seen: int
    silent: Interval | None
    kinds: dict[str, float]


def shares(some: Iterable[Outcome]) -> Shares:
    """Return the shares of silent failures among outcomes of any runs."""
    by_context: dict[int, list[Outcome]] = {}
    for one in some:
        if one.behind:
            by_context.setdefault(one.number, []).append(one)
    rows = list(by_context.values())
    kinds = {
        kind: statistics.fmean(sum(o.silent and o.kind == kind for o in row) / len(row) for row in rows)
        for kind in KINDS
        if rows
    }
    means = [sum(o.silent for o in row) / len(row) for row in rows]
    return Shares(len(rows), sum(map(len, rows)), interval(means) if rows else None, kinds)


def jump_share(some: Iterable[Outcome]) -> tuple[int, Interval | None, float | None]:
    """Return how many contexts jumped, and of their jumps the share with the embeddings in them, and the mean cause.

    The cause is the embeddings' share in it by the counterfactual. Each context counts once; None where none jumped.
    """
    rows: dict[int, list[Outcome]] = {}
    for one in some:
        if one.jumps:
            rows.setdefault(one.number, []).append(one)
    if not rows:
        return 0, None, None
    took = [sum(o.embeddings for o in row) / sum(o.jumps for o in row) for row in rows.values()]
    known = [[o.share for o in row if o.share is not None] for row in rows.values()]
    causes = [statistics.fmean(some) for some in known if some]
    return len(rows), interval(took), statistics.fmean(causes) if causes else None


def cells_of(cells: Sequence[Cell], stage: Stage, block: Block, arm: str, kind: str | None = None) -> list[Cell]:
    """Return an arm's cells of a block; all of them, or those of a kind."""
    found = [c for c in cells if (c.stage, c.block, c.arm) == (stage.name, block.name, arm)]
    return [c for c in found if kind is None or c.kind == kind]


def least_rate(cells: Sequence[Cell], stage: Stage, block: Block, arm: str) -> float | None:
    """Return the smallest rate that the search tried and that flipped the median context; None if none did."""
    rates: dict[float, list[float]] = {}
    for cell in cells_of(cells, stage, block, arm, "search"):
        share = cell.run.score(FLIPPED)
        rates.setdefault(cell.rate, []).append(0.0 if math.isnan(share) else share)
    return min((rate for rate, row in rates.items() if statistics.fmean(row) >= HALF), default=None)


# ---------------------------------------------------------------------- over replicates


def collateral(runs: Runs, arm: str) -> float | None:
    """Return an arm's mean held-out NLL at the end in relation to the start; None without runs, inf if one diverged."""
    row = [run.score(BACKGROUND) for run in runs.get(arm, {}).values()]
    if not row:
        return None
    return math.inf if any(map(math.isnan, row)) else statistics.fmean(row)


@dataclass(frozen=True)
class Plant:
    """What the planted change of the geometry gave.

    Attributes:
        jumps: changes that it made and that are judged as jumps, over all runs.
        phantom: how many of them were called phantom, or could not be told.
    """

    jumps: int
    phantom: int

    @property
    def works(self) -> bool:
        """Whether the instrument told the plant."""
        return self.jumps > 0 and self.phantom == 0


def plant(cells: Iterable[Cell]) -> Plant:
    """Return what the planted change gave in the runs whose embeddings are trained."""
    read = [cell.run.readings for cell in cells if cell.run.outcome == "finished" and PLANTED in cell.run.readings]
    return Plant(sum(int(r[PLANTED]) for r in read), sum(int(r[PLANTED_PHANTOM]) for r in read))


@dataclass(frozen=True)
class Verdict:
    """What became of a hypothesis.

    Attributes:
        name: ``H1`` to ``H3``.
        finding: the share, or the difference of shares, minus what it is held against.
        against: that number; 0 for a difference.
        p_holm: adjusted over the three; None before all cells are there.
        verdict: ``supported``, ``contradicted``, ``undecided``, or ``not complete``.
        why: what decided it where that is not the test alone.
    """

    name: str
    finding: Finding
    against: float
    p_holm: float | None
    verdict: str
    why: str = ""


#: the sign of the difference that each hypothesis names
SIGNS = {"H1": -1, "H2": -1, "H3": 1}
AGAINST = {"H1": TENTH, "H2": 0.0, "H3": TENTH}


def hypotheses(cells: Sequence[Cell]) -> list[Verdict]:
    """Return the verdicts; none is given before all judged cells of the three stages are there."""
    alone, mixed = judged(cells, MAIN.name, ALONE.name), judged(cells, AMONG.name, MIXED.name)
    fast = judged(cells, RUSHED.name, FAST.name)
    count = MAIN.replicates
    jumped = _minus(fast, EMBEDDINGS, TENTH)
    found = {
        "H1": finding(dict(enumerate(jumped.values())), len(jumped) if len(jumped) >= LEAST_JUMPED else count),
        "H2": finding(differences(alone, FLIPPED, LEAST, MOST), count),
        "H3": finding(_minus(mixed, FAILED, TENTH), count),
    }
    complete = all(len(alone.get(arm, {})) == count for arm in MAIN.arms)
    complete &= all(len(fast.get(arm, {})) == RUSHED.replicates for arm in RUSHED.arms)
    complete &= all(len(mixed.get(arm, {})) == AMONG.replicates for arm in AMONG.arms)
    if not complete:
        return [Verdict(name, one, AGAINST[name], None, "not complete") for name, one in found.items()]
    # one that cannot be tested keeps its place among the three: the others are not judged more leniently for it
    adjusted = holm({name: 1.0 if one.p is None else one.p for name, one in found.items()})
    whys = {
        "H1": _why_not_jumps(cells, found["H1"]),
        "H2": _why_not_equal(cells, alone),
        "H3": "" if found["H3"].complete else "a run diverged",
    }
    verdicts = []
    for name, one in found.items():
        verdict = "undecided"
        if not whys[name] and adjusted[name] <= LEVEL:
            assert one.difference is not None
            verdict = "supported" if one.difference.mean * SIGNS[name] > 0 else "contradicted"
        verdicts.append(Verdict(name, one, AGAINST[name], adjusted[name], verdict, whys[name]))
    return verdicts


def _minus(runs: Runs, key: str, against: float) -> dict[int, float]:
    """Return a share of the arm that trains all weights minus a number, by replicate; without those that lack it."""
    row = {replicate: run.score(key) for replicate, run in runs.get(FULL, {}).items()}
    return {replicate: share - against for replicate, share in row.items() if not math.isnan(share)}


def _why_not_jumps(cells: Sequence[Cell], one: Finding) -> str:
    whys = []
    runs = cells_of(cells, RUSHED, FAST, FULL, "judged")
    told = plant(runs)
    if not told.works:
        whys.append(f"of {told.jumps} planted changes {told.phantom} were called phantom")
    if diverged := sum(cell.run.outcome != "finished" for cell in runs):
        whys.append(f"{diverged} runs diverged")
    if not one.complete:
        whys.append(f"{len(one.values)} of {len(runs)} replicates have a jump")
    return "; ".join(whys)


def _why_not_equal(cells: Sequence[Cell], runs: Runs) -> str:
    rises = [collateral(runs, arm) or math.inf for arm in (LEAST, MOST)]
    whys = [f"{arm} beyond the bound" for arm, rise in zip((LEAST, MOST), rises, strict=True) if rise > BOUND]
    if not whys and abs(rises[0] - rises[1]) > EQUAL:
        whys = [f"held-out NLL differs by {100 * abs(rises[0] - rises[1]):.1f}% of the start"]
    for arm in (LEAST, MOST):
        searched = [c for c in cells_of(cells, STAGES[MAIN.rates_of], ALONE, arm, "search")]
        if searched and max(c.run.score(SCORE) for c in searched if not math.isnan(c.run.score(SCORE))) < 1 / CONTEXTS:
            whys.append(f"{arm} flips no context at a rate within the bound")
    return f"not at equal collateral: {'; '.join(whys)}" if whys else ""
