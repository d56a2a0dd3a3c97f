"""A forecast as data and words, before the run and graded by it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scipy.stats import beta
from typing_extensions import override

from lightning_sft.sweep.forecast.law import ProbeForecast
from lightning_sft.sweep.results import SweepResult
from lightning_sft.units import plural

#: the most probes in a printed table; the file has all
MOST = 10
#: of its flips an interval should hold so many
INTERVAL = 0.8
#: what a flip is and is not, below each table
GAP = (
    "The gap is how far the right word's logit is above its competitor's; the probe flips where it passes 0. A flip is "
    "over that one competitor: a third word may still be first. Rank 1 is the first of all words."
)


@dataclass(frozen=True)
class Forecast(SweepResult):
    """At which step each probe flips.

    Attributes:
        ahead: optimizer steps that the run had before it.
        spent: optimizer steps that the forecast took.
        rows_per_step: training rows of an optimizer step, over all ranks; None if unknown.
        share: the share of probes that is wished to flip by the end.
        rate: the peak rate of the run.
        rate_for_share: the peak rate at which that share flips by the end, low and high of its interval; None where
            the forecasts do not say it.
        probes: a forecast each.
        seen: after the run, the first step at which each was seen ahead; None: not by the end. Empty before.
        every: probes are read after so many steps.
        ranks: of the right words in the vocabulary where the forecast was made, 1 is the first; empty if unknown.
        ranks_seen: the same at the end of the run.
    """

    ahead: int
    spent: int
    rows_per_step: int | None
    share: float
    rate: float
    rate_for_share: tuple[float, float, float] | None
    probes: list[ProbeForecast]
    every: int
    seen: list[int | None] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)
    ranks_seen: list[float] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The last step of the run."""
        return self.step + self.ahead

    def graded(self, seen: list[int | None], ranks: Sequence[float] = ()) -> Forecast:
        """Return it with what the run has shown: steps of flips, and the right words' ranks at its end."""
        return replace(self, seen=list(seen), ranks_seen=list(ranks))

    @override
    def chosen(self) -> float | None:
        return None if self.rate_for_share is None else self.rate_for_share[0]

    @override
    def rows(self) -> list[dict[str, Any]]:
        table = []
        for i, of in enumerate(self.probes):
            cells = {name: getattr(of, name) for name in ("probe", "start", "outcome", "step", "low", "high", "why")}
            rows = None
            if of.step is not None and self.rows_per_step is not None:
                rows = (round(of.step) - self.step) * self.rows_per_step  # of the step as it is printed
            ranks = {"rank": self.ranks[i] if self.ranks else None}
            ranks["rank_seen"] = self.ranks_seen[i] if self.ranks_seen else None
            table.append({**cells, "rows": rows, "seen": self.seen[i] if self.seen else None, **ranks})
        return table

    @override
    def scalars(self) -> dict[str, float]:
        told = [p for p in self.probes if p.outcome != "cannot predict this"]
        flips = [p for p in told if p.outcome in ("flips", "flips by", "already ahead")]
        values = {"told": len(told) / len(self.probes)}
        if told:
            values["share"] = len(flips) / len(told)
        if self.rate_for_share is not None:
            values["rate"] = self.rate_for_share[0]
        if self.seen:
            values["seen_share"] = sum(s is not None for s in self.seen) / len(self.seen)
            if (error := self.median_error()) is not None:
                values["median_error"] = error
            covered, judged = self.coverage()
            if judged:
                values["covered"] = covered / judged
        return values

    # ------------------------------------------------------------------ grading

    def _judged(self) -> list[tuple[ProbeForecast, int | None]]:
        """Return the probes whose forecast the run can judge: told, and not ahead from the start."""
        pairs = zip(self.probes, self.seen, strict=True) if self.seen else ()
        return [(p, s) for p, s in pairs if p.outcome in ("flips", "flips by", "not by the end")]

    def median_error(self) -> float | None:
        """Return the median of |log(forecast / seen)| of the steps from the forecast on, of probes that have both.

        A step that is only an upper bound has no error.
        """
        errors = [
            abs(math.log(max(self._read_at(p.step) - self.step, 1) / max(s - self.step, 1)))
            for p, s in self._judged()
            if p.step is not None and s is not None and p.outcome != "flips by"
        ]
        return statistics.median(errors) if errors else None

    def _read_at(self, step: float) -> int:
        """Return the step at which a flip is seen first: probes are read after whole steps, and not after all."""
        return self.every * math.ceil(step / self.every)

    def coverage(self) -> tuple[int, int]:
        """Return how many of the intervals held, and of how many.

        A flip that was not seen by the end is held by an interval that reaches beyond the end, or by none at all; a
        flip that was seen must lie within, to the step at which probes are read.
        """
        held = 0
        judged = self._judged()
        for p, s in judged:
            if s is None:
                held += p.high is None or p.high > self.end - self.every
            else:
                held += p.low is not None and p.high is not None and p.low <= s and s - self.every < p.high
        return held, len(judged)

    # ------------------------------------------------------------------ words

    @override
    def text(self) -> str:
        graded = bool(self.seen)
        head = ["probe", "gap now"] + ["rank now"] * bool(self.ranks)
        head += ["flips at step", "80% interval", "rows until then"]
        head += ["seen"] * graded + ["rank at the end"] * bool(self.ranks_seen)
        lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        rows, chosen = self.rows(), self._first()
        lines += [f"| {' | '.join(self._cells(i, rows[i]))} |" for i in chosen]
        left = len(rows) - len(chosen)
        lines += ["", f"{left} more {'stands' if left == 1 else 'stand'} in the JSON file."] if left else []
        return "\n".join([*lines, "", GAP, "", self.sentence()])

    def _first(self) -> list[int]:
        """Return the places of the rows to print: all of a few; of many the earliest to flip, then by their gap.

        What will not flip or cannot be told comes behind, what is ahead already last.
        """
        many = len(self.probes) > MOST
        order = {"flips": 0, "flips by": 0, "not by the end": 1, "cannot predict this": 2, "already ahead": 3}

        def key(i: int) -> tuple[float, float, float]:
            of = self.probes[i]
            return (order[of.outcome], math.inf if of.step is None else of.step, -of.start)

        return sorted(range(len(self.probes)), key=key)[:MOST] if many else [*range(len(self.probes))]

    def _cells(self, i: int, row: dict[str, Any]) -> list[str]:
        of = self.probes[i]
        when, interval = str(of.outcome), "-"
        if of.outcome == "cannot predict this":
            when = f"{of.outcome}: {of.why}"
        elif of.step is not None and of.outcome != "already ahead":
            assert of.low is not None
            assert of.high is not None
            words = {"flips": "{:.0f}", "flips by": "{:.0f} or earlier", "not by the end": "not by the end ({:.0f})"}
            when = words[of.outcome].format(of.step)
            interval = f"{of.low:.0f} to {of.high:.0f}"
        cells = [of.probe, f"{of.start:+.2f}", *([f"{self.ranks[i]:.0f}"] if self.ranks else []), when, interval]
        cells.append("-" if row["rows"] is None else str(row["rows"]))
        cells += ["no" if self.seen[i] is None else str(self.seen[i])] if self.seen else []
        return [*cells, *([f"{self.ranks_seen[i]:.0f}"] if self.ranks_seen else [])]

    def sentence(self) -> str:
        """Return the answer in words."""
        told = [p for p in self.probes if p.outcome != "cannot predict this"]
        ahead = sum(p.outcome == "already ahead" for p in told)
        bounds = sum(p.outcome == "flips by" for p in told)
        flips = bounds + sum(p.outcome == "flips" for p in told)
        parts = [
            f"Of {plural(len(self.probes), 'probe')}: {ahead} ahead already, {flips} to flip by step {self.end}, "
            f"{len(told) - ahead - flips} not by then, {len(self.probes) - len(told)} that cannot be predicted. The "
            f"forecast took {self.spent} optimizer steps, beside the {self.ahead} of the run itself, and they leave no "
            "trace."
        ]
        if bounds:
            parts.append(
                f"Of those that flip, {bounds} do so late, where short runs mostly see flips too late: take their "
                "steps as upper bounds, and go by the intervals. A longer stretch says more, and so does a forecast "
                "later in the run."
            )
        if len(told) < len(self.probes):
            parts.append("For those that cannot be predicted: sweep, or forecast again later in the run.")
        if self.rate_for_share is not None:
            parts.append(self._by_rate(*self.rate_for_share))
        if self.seen:
            parts.append(self._grade())
        return " ".join(parts)

    def _by_rate(self, rate: float, low: float, high: float) -> str:
        """Return from which peak rate on the share flips, and what that means for the run's own."""
        if self.rate > high:
            own = "is above that, so they flip before the end; that is no reason to lower it"
        elif self.rate < low:
            own = "is below that, so fewer flip by the end: a higher rate or a longer run would take more of them over"
        else:
            own = "lies within that interval: it may or may not be enough"
        return (
            f"For {self.share:.0%} of the probes to be ahead by the end, a peak rate of {rate:.3g} or more is enough "
            f"by this forecast (80% interval {low:.3g} to {high:.3g}). The run's own, {self.rate:.3g}, {own}. Which "
            "rate is best for the loss is another question."
        )

    def _grade(self) -> str:
        error, (held, judged) = self.median_error(), self.coverage()
        seen = sum(s is not None for s in self.seen)
        text = f"Seen: {seen} of {len(self.seen)} ahead of their competitor at some step."
        if self.ranks_seen:
            first = sum(rank == 1 for rank in self.ranks_seen)
            text += f" At the end the right word is the model's first choice of all words in {first}."
        if error is not None:
            text += f" Steps were off by {math.expm1(error):.0%} in the median."
        if judged:
            low = float(beta.ppf(0.025, held, judged - held + 1)) if held else 0.0
            high = float(beta.ppf(0.975, held + 1, judged - held)) if held < judged else 1.0
            text += f" {held} of {judged} intervals of 80% held (95% for the share: {low:.2f} to {high:.2f})."
            if low > INTERVAL:
                text += " More held than four in five: the intervals are wider than they need be here."
            elif high < INTERVAL:
                text += " Fewer held than four in five: the intervals are too narrow here."
        return text
