"""From cells to what each rule loses, and to what tells the best rate: pure functions, registered before the cells."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_sft.compare.statistics import LEVEL, holm
from lightning_sft.sweep.intervals import Interval
from studies.cells import Cell
from studies.findings import Finding, finding
from studies.rates.design import MAIN, PILOT, Block, Stage
from studies.rates.rules import BAND, FORMULA, TUNED, Rule, line_minimum, lowest, rules
from studies.rates.unit import JUDGED, START_JUDGED, STATICS, at_rates

PERMUTATIONS, SEED = 20_000, 7


@dataclass(frozen=True)
class Unit:
    """What a cell has given.

    Attributes:
        block: of the study.
        replicate: which one.
        readings: by key.
        steps: optimizer steps of a run.
        curve: NLL of the judged rows at the end by rate, rising; nan where the run diverged.
    """

    block: Block
    replicate: int
    readings: Mapping[str, float]
    steps: int
    curve: Mapping[float, float]

    @property
    def best(self) -> float:
        """The best rate of the grid."""
        found = lowest(self.curve)
        assert found is not None
        return found

    @property
    def start(self) -> float:
        """NLL of the judged rows before the first step."""
        return self.readings[START_JUDGED]

    def rate(self, rule: Rule) -> float | None:
        """Return the rate that a rule names."""
        return rule.rate(self.readings, self.block, self.readings["width"], self.steps)

    def nll(self, rate: float) -> float:
        """Return the NLL at the end at a rate, in between by a line over the logarithm of the rate; nan: diverged.

        Below the lowest rate it is that of the lowest, above the highest one that of the highest.
        """
        rates = list(self.curve)
        place = bisect.bisect_left(rates, rate)
        if place == 0 or place == len(rates):
            return self.curve[rates[min(place, len(rates) - 1)]]
        low, high = rates[place - 1], rates[place]
        share = math.log(rate / low) / math.log(high / low)
        return self.curve[low] * (1 - share) + self.curve[high] * share if share < 1 else self.curve[high]

    def lost(self, rate: float | None) -> float:
        """Return the share of the possible gain that a rate loses, 0 to 1; 1 where it diverges or is none."""
        if rate is None:
            return 1.0
        least = self.curve[self.best]
        gain = self.start - least
        value = (self.nll(rate) - least) / gain if gain > 0 else math.nan
        return min(max(value, 0.0), 1.0) if math.isfinite(value) else 1.0


def units(cells: Sequence[Cell], stage: Stage) -> list[Unit]:
    """Return the units of a stage, in its order of blocks."""
    found = []
    for block in stage.blocks:
        for cell in sorted((c for c in cells if c.kind == "judged"), key=lambda c: c.replicate):
            if (cell.stage, cell.block) == (stage.name, block.name) and cell.replicate < stage.replicates:
                readings = cell.run.readings
                steps = int(cell.settings["sizes"]["steps"])
                found.append(Unit(block, cell.replicate, readings, steps, at_rates(readings, JUDGED)))
    return found


def tuned(cells: Sequence[Cell]) -> tuple[float, float] | None:
    """Return the constants that the pilot speaks for, for all weights and for LoRA: geometric means of best rates."""
    some = units(cells, PILOT)
    if len(some) < len(PILOT.blocks) * PILOT.replicates:
        return None
    full, lora = (
        math.exp(statistics.fmean(math.log(unit.best) for unit in some if unit.block.lora == which))
        for which in (False, True)
    )
    return float(f"{full:.2g}"), float(f"{lora:.2g}")


def by_block(some: Sequence[Unit], rule: Rule) -> dict[str, float]:
    """Return what a rule loses in each block, mean over seeds."""
    found: dict[str, list[float]] = {}
    for unit in some:
        found.setdefault(unit.block.name, []).append(unit.lost(unit.rate(rule)))
    return {name: statistics.fmean(row) for name, row in found.items()}


@dataclass(frozen=True)
class Loss:
    """What a rule loses over a stage.

    Attributes:
        rule: of `rules`.
        mean: over blocks, and over those that train all weights, and LoRA.
        full: see there.
        lora: see there.
        worst: the most that it loses in a block.
        ratio: geometric mean of its rate over the best one; None where it names none in some unit.
        nats: mean excess of NLL over the best rate, of runs that did not diverge.
    """

    rule: Rule
    mean: float
    full: float
    lora: float
    worst: float
    ratio: float | None
    nats: float


def losses(cells: Sequence[Cell], stage: Stage = MAIN) -> list[Loss]:
    """Return what each rule loses over the units of a stage that are there, in the rules' order; [] without any."""
    some = units(cells, stage)
    if not some:
        return []
    result = []
    for rule in rules(tuned(cells)):
        row = by_block(some, rule)
        apart = {lora: [row[u.block.name] for u in some if u.block.lora == lora] for lora in (False, True)}
        full, lora = (statistics.fmean(apart[which]) if apart[which] else math.nan for which in (False, True))
        rates = [(u, u.rate(rule)) for u in some]
        known = [(u, rate) for u, rate in rates if rate is not None]
        logs = [math.log(rate / u.best) for u, rate in known]
        ratio = math.exp(statistics.fmean(logs)) if len(known) == len(some) else None
        excess = [value for u, rate in known if math.isfinite(value := u.nll(rate) - u.curve[u.best])]
        nats = statistics.fmean(excess) if excess else math.nan
        result.append(Loss(rule, statistics.fmean(row.values()), full, lora, max(row.values()), ratio, nats))
    return result


# ---------------------------------------------------------------------- hypotheses


@dataclass(frozen=True)
class Verdict:
    """What became of a hypothesis.

    Attributes:
        name: ``H1`` to ``H3``.
        effect: the difference in what is lost, with its interval over blocks, or the correlation.
        p_holm: adjusted over the three; None before all cells are there.
        verdict: ``supported``, ``contradicted``, ``undecided``, or ``not complete``.
    """

    name: str
    effect: Interval | float | None
    p_holm: float | None
    verdict: str


def difference(cells: Sequence[Cell], rule: str, other: str) -> Finding:
    """Return what one rule loses minus what another one does, by block in the design's order."""
    some, named = units(cells, MAIN), {r.name: r for r in rules(tuned(cells))}
    a, b = by_block(some, named[rule]), by_block(some, named[other])
    return finding({i: a[x.name] - b[x.name] for i, x in enumerate(MAIN.blocks) if x.name in a}, len(MAIN.blocks))


def hypotheses(cells: Sequence[Cell]) -> list[Verdict]:
    """Return the verdicts; none is given before all units of the confirmatory stage are there."""
    some = units(cells, MAIN)
    if len(some) < len(MAIN.blocks) * MAIN.replicates or tuned(cells) is None:
        return [Verdict(name, None, None, "not complete") for name in ("H1", "H2", "H3")]
    found = {name: difference(cells, BAND, other) for name, other in (("H1", TUNED), ("H2", FORMULA))}
    rho, p = line_law(some)
    adjusted = holm({**{name: 1.0 if one.p is None else one.p for name, one in found.items()}, "H3": p})
    verdicts = []
    for name, one in found.items():
        assert one.difference is not None
        verdict = "undecided" if adjusted[name] > LEVEL else "supported" if one.difference.mean < 0 else "contradicted"
        verdicts.append(Verdict(name, one.difference, adjusted[name], verdict))
    verdict = "supported" if adjusted["H3"] <= LEVEL else "undecided"
    return [*verdicts, Verdict("H3", rho, adjusted["H3"], verdict)]


# ---------------------------------------------------------------------- what tells the best rate


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's correlation; 0 where one of the two does not vary.

    >>> round(spearman([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 3.0]), 3)
    0.8
    """
    x, y = (_ranks(row) for row in (a, b))
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Return ranks, ties at their mean."""
    row = np.asarray(values, dtype=float)
    return np.array([(row < v).sum() + ((row == v).sum() - 1) / 2 for v in row])


def line_law(some: Sequence[Unit]) -> tuple[float, float]:
    """Return the correlation of the line minimum with the best rate, and its one-sided p by permuting blocks.

    Units of a block move together: their best rates are those of another block of the same number of units.
    """
    names = list(dict.fromkeys(unit.block.name for unit in some))
    groups = [[unit for unit in some if unit.block.name == name] for name in names]
    told = [[line_minimum(unit.readings) or 0.0 for unit in group] for group in groups]
    best = [[unit.best for unit in group] for group in groups]
    flat = [value for row in told for value in row]
    seen = spearman(flat, [value for row in best for value in row])
    rng = np.random.default_rng(SEED)
    x = _ranks(flat)
    y = _ranks([value for row in best for value in row]).reshape(len(groups), -1)
    if x.std() == 0 or y.std() == 0:
        return seen, 1.0
    x = (x - x.mean()) / x.std()
    above = 0
    for _ in range(PERMUTATIONS):
        moved = y[rng.permutation(len(groups))].ravel()
        above += float((x * (moved - moved.mean()) / moved.std()).mean()) >= seen - 1e-12
    return seen, (above + 1) / (PERMUTATIONS + 1)


def predictors(some: Sequence[Unit]) -> dict[str, dict[str, float]]:
    """Return the correlation of each static, and of each rule that reads the run, with the best rate.

    Over all units, over those that train all weights, and over those of LoRA: how a model is trained decides its best
    rate, so a correlation over all units may be nothing but that.

    Args:
        some: units.
    """
    read = {name: [unit.readings[name] for unit in some] for name in STATICS}
    read["NLL before"] = [unit.start for unit in some]
    read["line minimum"] = [line_minimum(unit.readings) or 0.0 for unit in some]
    for rule in rules(None):
        if rule.kind == "finder":
            read[rule.name] = [unit.rate(rule) or 0.0 for unit in some]
    groups = {"all": (False, True), "full": (False,), "LoRA": (True,)}
    found: dict[str, dict[str, float]] = {}
    for name, values in read.items():
        found[name] = {}
        for group, which in groups.items():
            kept = [i for i, unit in enumerate(some) if unit.block.lora in which]
            found[name][group] = spearman([values[i] for i in kept], [some[i].best for i in kept])
    return found
