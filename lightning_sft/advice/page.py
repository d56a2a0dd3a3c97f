"""The page of `lightning advise`, and its parts as plain data."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_sft.advice.advice import JUDGED
from lightning_sft.advice.cost import Cost
from lightning_sft.advice.rate import RateReading
from lightning_sft.advice.rules import advise
from lightning_sft.metrics.capability_reading import CapabilityReading, GroupReading

FORMAT = "lightning_sft.advice.v1"


@dataclass
class Survey:
    """What `lightning advise` has found; parts that were left out are None.

    Attributes:
        options: of the command line, those that name the run.
        optimizer: option that sets the learning rate of the run.
        data: a text for each set.
        counts: scalars of each set.
        capability: the reading.
        rate: on the learning rate.
        cost: of the fit.
    """

    options: list[str]
    optimizer: str
    data: list[str] | None = None
    counts: Mapping[str, Mapping[str, float]] | None = None
    capability: CapabilityReading | None = None
    rate: RateReading | None = None
    cost: Cost | None = None

    def command(self) -> str:
        """Return the one command to run next."""
        options = shlex.join(self.options)
        if self.rate is not None and self.rate.suggestion is not None and self.rate.verdict in ("too high", "very low"):
            options += f" {self.optimizer}={self.rate.suggestion:.2g}"
        if self.capability is None:
            return f"lightning fit {options}"
        advice = advise(self.capability)
        return advice.command(f"{options} {JUDGED}" if advice.compare and not self._validates() else options)

    def _validates(self) -> bool:
        """Return whether the run has validation rows, as far as is known."""
        return self.counts is None or "val" in self.counts

    def markdown(self) -> str:
        """Return the page."""
        blocks = ["# Before you train"]
        if self.rate is not None and self.rate.verdict == "diverges at once":
            blocks.append(f"**{self.rate.why}**")
        blocks += ["Run next:", f"```sh\n{self.command()}\n```"]
        if self.data is not None:
            blocks += ["## Data", "```text\n" + "\n".join(self.data) + "\n```"]
        if self.capability is not None:
            blocks += ["## Where the model stands", _capability(self.capability)]
            blocks += ["## Which objective", advise(self.capability).markdown(command=False)]
        if self.rate is not None:
            blocks += ["## Learning rate", _rate(self.rate)]
        if self.cost is not None:
            blocks += ["## Cost", _cost(self.cost)]
        return "\n\n".join(blocks) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        advice = None if self.capability is None else advise(self.capability).to_dict()
        parts = {"capability": self.capability, "rate": self.rate, "cost": self.cost}
        return {
            "format": FORMAT,
            "command": self.command(),
            "data": self.counts,
            "advice": advice,
            **{name: part and part.to_dict() for name, part in parts.items()},
        }


def _capability(reading: CapabilityReading) -> str:
    of = "" if reading.rows_of_set is None else f" of {reading.rows_of_set}"
    lines = [
        f"Mean p of the supervised tokens before training: {_with_bounds(reading.all)}: **{reading.all.place}** "
        f"(weak up to {reading.cut_offs.weak:g}, strong from {reading.cut_offs.strong:g}; the cut-offs are ours). "
        f"Read from {reading.all.rows}{of} rows; intervals are 95%, by a bootstrap over rows.",
        "",
        "| of | rows | tokens | mean p | NLL | first choice | p < 0.1 | p > 0.55 | exact match | calibration error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = {"all": reading.all}
    groups |= reading.sources if len(reading.sources) > 1 else {}
    groups |= {n: g for n, g in (("special tokens", reading.special), ("ends of answers", reading.end)) if g}
    for name, g in groups.items():
        exact = "" if g.exact_match is None else f"{g.exact_match:.1%}"
        lines.append(
            f"| {name} | {g.rows} | {g.tokens} | {g.mean_p:.3f} | {g.nll:.2f} | {g.top1_share:.1%} | "
            f"{g.share_unlikely:.1%} | {g.share_known:.1%} | {exact} | {g.calibration_error:.3f} |"
        )
    quantiles = ", ".join(f"{name} {value:.3g}" for name, value in reading.all.p_quantiles.items())
    return "\n".join([*lines, "", f"Quantiles of p: {quantiles}."])


def _with_bounds(group: GroupReading) -> str:
    bounds = group.mean_p_interval
    return f"{group.mean_p:.3f}" + ("" if bounds is None else f" [{bounds[0]:.3f}, {bounds[1]:.3f}]")


def _rate(reading: RateReading) -> str:
    lines = [f"**{reading.rate:.2g} is {reading.verdict}.** {reading.why}"]
    if reading.verdict == "diverges at once":
        lines = [reading.why]
    elif reading.verdict == "unknown":
        lines = [f"**Whether {reading.rate:.2g} is sane is not known.** {reading.why}"]
    if reading.suggestions:
        found = ", ".join(f"{name.replace('_', ' ')} {rate:.2g}" for name, rate in reading.suggestions.items())
        lines.append(f"What the curve of {len(reading.losses)} steps suggests: {found}.")
    return "\n\n".join(lines)


def _cost(cost: Cost) -> str:
    lines = [
        f"- {cost.seconds_per_step:.2f} s an optimizer step (median of {cost.measured_steps}, on {cost.device})",
        f"- peak memory {cost.peak_memory / 2**30:.2f} GiB; for this survey a copy of what trains was held, up to "
        f"{cost.copy_memory / 2**30:.2f} GiB of it",
    ]
    if cost.seconds is None:
        lines.append("- the number of steps is not known, so neither is the time of the fit")
    else:
        validations = f", {cost.validations} validations" if cost.validations else ""
        lines.append(
            f"- the whole fit, {cost.steps} steps{validations}: about {_duration(cost.seconds)}, without generated "
            "answers and without saving"
        )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
