"""Results of sweeps as data: JSON, CSV, and one sentence."""

from __future__ import annotations

import csv
import io
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_sft.files import to_json, write_text
from lightning_sft.sweep.search import CrossingStatus
from lightning_sft.sweep.suggest import Suggestions
from lightning_sft.units import plural

#: what crossing means where no probes are read
AT_TARGET = "validation NLL at its target"
#: what it means by default
FLIP = "rank flip"


@dataclass(frozen=True)
class SweepResult(ABC):
    """Base class of the results of sweeps.

    Attributes:
        name: of the sweep.
        step: optimizer step of the fit that trials started from.
        digest: of everything that the outcomes depend on.
    """

    name: str
    step: int
    digest: str

    @abstractmethod
    def rows(self) -> list[dict[str, Any]]:
        """Return the table behind the result, a row a point or trial."""

    @abstractmethod
    def scalars(self) -> dict[str, float]:
        """Return what is logged."""

    @abstractmethod
    def text(self) -> str:
        """Return the result for people."""

    def chosen(self) -> float | None:
        """Return the rate that ``apply`` sets; None where there is none."""
        return None

    def to_json(self) -> str:
        """Return all of the result as strict JSON; numbers that are not finite become null."""
        return to_json(asdict(self) | {"text": self.text()}, indent=1)

    def to_csv(self) -> str:
        """Return `rows` as CSV."""
        rows = self.rows()
        file = io.StringIO()
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return file.getvalue()

    def save(self, folder: Path) -> None:
        """Write ``<name>.json`` and ``<name>.csv`` into a folder."""
        write_text(folder / f"{self.name}.json", self.to_json() + "\n")
        write_text(folder / f"{self.name}.csv", self.to_csv())


@dataclass(frozen=True)
class RangeTest(SweepResult):
    """A loss against a rate that rises from step to step.

    Attributes:
        reads: ``training loss`` or ``validation NLL``.
        rates: of each step.
        losses: read after the step at each rate; the last may be nan or inf.
        smoothed: the same, smoothed.
        suggestions: rates that the curve suggests.
        choice: the suggestion to take.
    """

    reads: str
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestions: Suggestions
    choice: str

    @override
    def chosen(self) -> float | None:
        return self.suggestions.values().get(self.choice)

    @override
    def rows(self) -> list[dict[str, Any]]:
        pairs = zip(self.rates, self.losses, self.smoothed, strict=True)
        return [{"lr": r, "loss": loss, "smoothed": smooth} for r, loss, smooth in pairs]

    @override
    def scalars(self) -> dict[str, float]:
        chosen = self.chosen()
        return {**self.suggestions.values(), **({} if chosen is None else {"chosen": chosen})}

    @override
    def text(self) -> str:
        given = asdict(self.suggestions)
        lines = ["| suggestion | learning rate |", "| --- | --- |"]
        lines += [f"| {k.replace('_', ' ')} | {'-' if v is None else f'{v:.4g}'} |" for k, v in given.items()]
        chosen = self.chosen()
        end = f"The choice, {self.choice}: {'the curve gives none' if chosen is None else f'{chosen:.4g}'}."
        why = " (it is read a step after its rate, so the last step has none)" if self.reads == "training loss" else ""
        return "\n".join(
            [*lines, "", f"Range test on the {self.reads} at {plural(len(self.rates), 'rate')}{why}. {end}"]
        )


@dataclass(frozen=True)
class ProbeBracket:
    """Where the trials saw one probe cross.

    Attributes:
        probe: its name.
        start: the criterion's value before any step (the margin, Phi, or the validation NLL).
        lower: largest rate below ``upper`` at which it had not crossed; None without one.
        upper: smallest rate at which it had; None without one.
        monotonic: no higher rate was seen at which it had not.
    """

    probe: str
    start: float
    lower: float | None
    upper: float | None
    monotonic: bool


@dataclass(frozen=True)
class CriticalTrial:
    """One trial of a critical-rate search.

    Attributes:
        lr: its rate.
        crossed: whether enough probes had crossed within the steps.
        share: share of the probes that had, when the trial ended.
        step: the first step after which enough had; None if never.
        outcome: ``finished``, ``stopped`` (seen enough) or ``diverged``.
        steps: optimizer steps taken.
        seconds: wall time.
        first: probes whose right word was the first choice of all words when the trial ended; None if unknown.
    """

    lr: float
    crossed: bool
    share: float
    step: int | None
    outcome: str
    steps: int
    seconds: float
    first: int | None = None


@dataclass(frozen=True)
class CriticalRate(SweepResult):
    """The smallest learning rate at which enough probes cross within T steps.

    Attributes:
        status: ``found``, ``already`` (crossed before any step), ``never`` (at no rate tried), ``below`` (at every
            rate tried).
        criterion: what crossing means.
        quantile: share of the probes that must cross.
        steps_allowed: T.
        lower: largest rate below ``upper`` at which they did not.
        upper: smallest rate at which they did: the critical rate, known to work.
        resolution: upper / lower - 1.
        relapses: higher rates at which they did not: the outcome is not monotonic in the rate.
        trials: all of them, by rising rate.
        probes: brackets of the single probes, as far as these trials saw them.
        own: the run's own peak rate; None if unknown.
    """

    status: CrossingStatus
    criterion: str
    quantile: float
    steps_allowed: int
    lower: float | None
    upper: float | None
    resolution: float | None
    relapses: list[float] = field(default_factory=list)
    trials: list[CriticalTrial] = field(default_factory=list)
    probes: list[ProbeBracket] = field(default_factory=list)
    own: float | None = None

    @property
    def reads_probes(self) -> bool:
        """Whether probes crossed, and not the validation NLL."""
        return self.criterion != AT_TARGET

    @property
    def critical(self) -> float | None:
        """The smallest rate that was seen to cross, where a smaller one was seen not to."""
        return self.upper if self.status == "found" else None

    @property
    def monotonic(self) -> bool:
        """Whether no higher rate failed."""
        return not self.relapses

    @override
    def chosen(self) -> float | None:
        return self.critical

    @override
    def rows(self) -> list[dict[str, Any]]:
        return [asdict(trial) for trial in self.trials]

    @override
    def scalars(self) -> dict[str, float]:
        given = {"critical": self.critical, "critical_lower": self.lower, "critical_upper": self.upper}
        known = {k: v for k, v in {**given, "chosen": self.critical}.items() if v is not None}
        return {**known, "monotonic": float(self.monotonic), "trials": float(len(self.trials))}

    @override
    def text(self) -> str:
        if not self.trials:
            return self.sentence()
        lines = ["| learning rate | crossed | share | at step | trial |", "| --- | --- | --- | --- | --- |"]
        for t in self.trials:
            cells = (f"{t.lr:.6g}", "yes" if t.crossed else "no", f"{t.share:.2f}", t.step or "-", t.outcome)
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        share = " Share: of the probes, when the trial ended." if self.reads_probes else ""
        flip = " A flip is over a probe's one competitor: a third word may still be first." * (self.criterion == FLIP)
        legend = f"Crossed: {self._what}. A trial is stopped once it has shown that.{share}{flip}"
        return "\n".join([*lines, "", legend, "", self.sentence()])

    @property
    def _what(self) -> str:
        """What crossing means, in words."""
        of = f" of {self.quantile:.0%} of the probes" if self.reads_probes else ""
        return f"{self.criterion}{of} within {self.steps_allowed} step{'s' if self.steps_allowed > 1 else ''}"

    def sentence(self) -> str:
        """Return the answer in words."""
        what = self._what
        rates = [t.lr for t in self.trials]
        if self.status == "already":
            return f"There is no critical rate: {what} holds before any step, at any rate."
        if self.status == "never":
            return (
                f"Not reached: {what} happened at no rate from {min(rates):.4g} to {max(rates):.4g}. "
                "Raise `high` or `steps`, or look whether the trials diverged."
            )
        if self.status == "below":
            return f"Below the range: {what} happened at every rate from {min(rates):.4g} on. Lower `low`."
        end = ""
        if self.relapses:
            again = ", ".join(f"{r:.4g}" for r in self.relapses)
            end = f" NOT MONOTONIC: it did not happen at the higher rate {again}; the smallest crossing is reported."
        assert self.resolution is not None
        return (
            f"Critical rate {self.upper:.6g}, the smallest that was seen to do it: {what}. Bracket {self.lower:.6g} "
            f"(no) to {self.upper:.6g} (yes), {self.resolution:.2%} wide, {plural(len(self.trials), 'trial')}.{end}"
            f"{self._beside()}"
        )

    def _beside(self) -> str:
        """Return which words were first at the critical rate, and where the run's own rate stands."""
        assert self.lower is not None
        assert self.upper is not None
        text = ""
        first = next((t.first for t in self.trials if t.lr == self.upper), None)
        if first is not None:
            text = f" At the end of the trial at {self.upper:.6g}, the right word was the first choice of all words in "
            text += f"{first} of {plural(len(self.probes), 'probe')}."
        if self.own is None:
            return text
        sure = max(t.lr for t in self.trials if t.crossed and t.lr < min(self.relapses, default=math.inf))
        if self.own > sure and self.relapses:
            where = (
                f"{self.own / self.upper:.3g} times the critical one; as a higher rate failed, that may not be enough"
            )
        elif self.own >= self.upper:
            where = f"{self.own / self.upper:.3g} times the critical one: high enough for that within these steps"
        elif self.own <= self.lower:
            where = f"{self.own / self.upper:.3g} times the critical one: too low for that within these steps"
        else:
            where = "within the bracket: these trials do not tell"
        return f"{text} The run's own peak rate, {self.own:.4g}, is {where}."
