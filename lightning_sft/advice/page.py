"""The page of `lightning advise`, and its parts as plain data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_sft.advice.advice import Advice
from lightning_sft.advice.comparison import FIRST_LOOK, JUDGED, Comparison, too_few_to_compare
from lightning_sft.advice.cost import Cost
from lightning_sft.advice.evidence import RATES_HERE
from lightning_sft.advice.options import RATE, files_first, without, without_objective
from lightning_sft.advice.rate import RateReading
from lightning_sft.advice.rules import advise
from lightning_sft.advice.setup import Setup
from lightning_sft.held_out import MIN_ROWS
from lightning_sft.metrics.capability_reading import CapabilityReading, GroupReading
from lightning_sft.units import count, duration, plural, probability

FORMAT = "lightning_sft.advice.v1"
#: the tokens by which the place is judged, in tables
CONTENT = "answers' own tokens"


@dataclass
class Survey:
    """What `lightning advise` has found; parts that were left out are None.

    Attributes:
        options: of the command line, those that name the run.
        setup: what the configuration amounts to.
        data: a text for each set.
        counts: scalars of each set.
        examples: some training rows as text, with the trained tokens marked.
        capability: the reading.
        rate: on the learning rate.
        cost: of the fit.
        memory: what a device will hold: ``text``, and bytes by what holds them.
    """

    options: list[str]
    setup: Setup | None = None
    data: list[str] | None = None
    counts: Mapping[str, Mapping[str, float]] | None = None
    examples: list[str] | None = None
    capability: CapabilityReading | None = None
    rate: RateReading | None = None
    cost: Cost | None = None
    memory: Mapping[str, Any] | None = None

    @property
    def advice(self) -> Advice | None:
        """What the reading speaks for."""
        return None if self.capability is None else advise(self.capability)

    @property
    def corrected(self) -> RateReading | None:
        """The reading of a rate in whose place a fit should take the suggested one; None where the rate may stay."""
        wrong = self.rate is not None and self.rate.verdict in ("too high", "very low")
        return self.rate if wrong and self.rate is not None and self.rate.suggestion is not None else None

    def command(self) -> str:
        """Return the one command to run next."""
        advice = self.advice
        if advice is None or not advice.compare or self.has_few:
            return self.fit()
        judged = "" if self._validates() else f" {JUDGED}"
        # every arm finds its own rate
        return advice.command(shlex.join(files_first(without_objective(self.options))) + judged)

    def fit(self) -> str:
        """Return the command of one fit, at a rate that the range test does not speak against."""
        options, rate, advice = files_first(self.options), self.corrected, self.advice
        if rate is not None:
            options = [*without(options, RATE), "--lr", f"{rate.suggestion:.2g}"]
        if advice is None:
            return f"lightning fit {shlex.join(options)}"
        return advice.fit(shlex.join(without_objective(options)))

    @property
    def has_few(self) -> bool:
        """Whether the rows are too few to compare objectives on, as far as is known."""
        train, val = ((self.counts or {}).get(what, {}).get("rows") for what in ("train", "val"))
        return too_few_to_compare(train, val)

    def _validates(self) -> bool:
        """Return whether the run has validation rows, as far as is known."""
        return self.counts is None or "val" in self.counts

    def markdown(self) -> str:
        """Return the page."""
        blocks = ["# Before you train"]
        if self.rate is not None and self.rate.verdict == "diverges at once":
            blocks.append(f"**{self.rate.why}**")
        blocks += ["Run next:", f"```sh\n{self.command()}\n```"]
        advice, found = self.advice, self.rate
        if found is not None and found.verdict in ("high", "at the edge") and found.suggestion is not None:
            blocks.append(
                f"The learning rate stays at {found.rate:.2g}, which is {found.verdict}; the careful choice is "
                f"`--lr {found.suggestion:.2g}`, see below."
            )
        if advice is not None and advice.compare and self.has_few:
            blocks.append(
                "What the model knows does not tell which objective is best, and there are too few rows for a "
                f"comparison: it needs {MIN_ROWS} or more to be judged by."
            )
        elif advice is not None and advice.compare:
            blocks += [_comparison(advice, self.cost), f"```sh\n{self.fit()}\n```"]
        if (rate := self.corrected) is not None:
            blocks += [
                f"**The fit takes another learning rate than the configuration: {rate.rate:.2g} is {rate.verdict}, see "
                "below.**"
            ]
        if self.setup is not None:
            blocks += ["## The run", _setup(self.setup)]
        if self.data is not None:
            blocks += ["## Data", _fenced("\n".join(self.data))]
        if self.examples:
            blocks += ["Rows as they are trained; trained tokens stand between \u27e6 and \u27e7:"]
            blocks += map(_fenced, self.examples)
        if self.capability is not None and advice is not None:
            blocks += ["## Where the model stands", _capability(self.capability)]
            blocks += ["## Which objective", advice.markdown(command=False)]
        if self.rate is not None:
            blocks += ["## Learning rate", _rate(self.rate)]
        if self.cost is not None:
            blocks += ["## Cost", _cost(self.cost)]
            if advice is not None and not advice.compare and not self.has_few:
                blocks.append(f"A comparison on your data, `lightning compare`: {_fits(len(advice.arms), self.cost)}")
        if self.memory is not None:
            blocks += ["## Memory of a device", _fenced(self.memory["text"])]
            blocks.append(
                "What the fit itself will hold on a device, estimated for its largest batch and not measured; "
                "`lightning estimate` says what would need less."
            )
        return "\n\n".join(blocks) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        advice = self.advice
        parts = {"setup": self.setup, "capability": self.capability, "rate": self.rate, "cost": self.cost}
        return {
            "format": FORMAT,
            "command": self.command(),
            "fit": self.fit(),
            "data": self.counts,
            "examples": self.examples,
            "memory": self.memory,
            "advice": advice and {**advice.to_dict(), "command": self.command()},
            **{name: part and part.to_dict() for name, part in parts.items()},
        }


def _comparison(advice: Advice, cost: Cost | None) -> str:
    return (
        f"It compares {_fits(len(advice.arms), cost)} The same command goes on where it was interrupted.\n\n"
        f"To train once and compare nothing, under {advice.pick.short()}:"
    )


def _fits(arms: int, cost: Cost | None) -> str:
    """Return what a comparison of so many objectives is made of, and what it costs, beginning with their number."""
    usual, look = Comparison.usual(arms), Comparison.first_look(arms)

    def lasts(fits: int) -> str:
        seconds = None if cost is None else cost.seconds
        return "" if seconds is None else f", about {duration(fits * seconds)} of training on this machine"

    return (
        f"{usual.arms} objectives. Each searches for its own learning rate with {usual.trials} fits and is then judged "
        f"by {usual.replicates} more, on rows and seeds of their own: {usual.fits} fits like this run"
        f"{lasts(usual.fits)}, and more where a best rate lies at an end of the range. For a first look append "
        f"`{FIRST_LOOK}`: {look.fits} fits{lasts(look.fits)}."
    )


def _setup(setup: Setup) -> str:
    share = setup.trained / max(setup.parameters, 1)
    how = "all of them trained" if setup.adapter is None and share == 1 else f"{count(setup.trained)} of them trained"
    how += f" ({share:.1%}{'' if setup.adapter is None else f', {setup.adapter}'})"
    step = "batches of no fixed size"
    if setup.rows_of_step is not None:
        parts = [f"{setup.batch_size} a batch"]
        parts += [f"{setup.accumulate} batches a step"] if setup.accumulate > 1 else []
        parts += [f"{setup.ranks} ranks"] if setup.ranks > 1 else []
        step = f"{setup.rows_of_step} {setup.unit} ({', '.join(parts)})"
    steps = "unknown" if setup.steps is None else str(setup.steps)
    steps += "" if setup.epochs is None else f", which is {setup.epochs:.2f} epochs of {setup.rows:,} {setup.unit}"
    lines = {
        "model": f"{setup.model} ({setup.kind})",
        "parameters": f"{count(setup.parameters)}, {how}; weights in {', '.join(setup.dtypes)}",
        "objective": setup.objective,
        "optimizer": f"{setup.optimizer}, learning rate {setup.rate:.2g} at its peak",
        "an optimizer step": step,
        "optimizer steps": steps,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in lines.items())])


def _capability(reading: CapabilityReading) -> str:
    rows = plural(reading.all.rows, "row")
    if reading.rows_of_set is not None:
        rows = f"{reading.all.rows} of {plural(reading.rows_of_set, 'row')}"
    judged, apart = reading.judged, reading.content is not None and reading.special is not None
    whose = f'the row "{CONTENT}" of the table (special tokens left out)' if apart else "all tokens"
    lines = [
        f"**{reading.standing}**: mean p before training is {_with_bounds(judged)}, judged by {whose}. Weak is up to "
        f"{reading.cut_offs.weak:g}, strong from {reading.cut_offs.strong:g}; the cut-offs are ours. Read from "
        f"{rows}; intervals are 95%, by a bootstrap over rows.",
        "",
        "| of | rows | tokens | mean p | NLL | first choice | p < 0.1 | p > 0.55 | exact match | calibration error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups = {"all trained tokens": reading.all}
    groups |= {CONTENT: reading.content} if apart and reading.content is not None else {}
    ends = None if reading.end == reading.special else reading.end  # where only ends are special, one row says it
    special = "special tokens, all of them ends of answers" if reading.end and ends is None else "special tokens"
    groups |= {n: g for n, g in ((special, reading.special), ("ends of answers", ends)) if g}
    if len(reading.sources) > 1:
        groups |= {f"source {name}": group for name, group in reading.sources.items()}
        own = reading.content_of_sources.items() if apart else ()
        groups |= {f"source {name}, {CONTENT}": group for name, group in own}
    for name, g in groups.items():
        name = name.replace("|", r"\|")
        exact = "" if g.exact_match is None else f"{g.exact_match:.1%} ({g.exact_answers} of {g.answers})"
        lines.append(
            f"| {name} | {g.rows} | {g.tokens} | {probability(g.mean_p)} | {g.nll:.2f} | {g.top1_share:.1%} | "
            f"{g.share_unlikely:.1%} | {g.share_known:.1%} | {exact} | {g.calibration_error:.3f} |"
        )
    quantiles = ", ".join(f"{name} {value:.3g}" for name, value in judged.p_quantiles.items())
    legend = (
        "p: the probability of the right token. First choice: how often the right token is the most likely one. Exact "
        "match: every token of the answer is the first choice (read in one pass, nothing is written). Calibration "
        "error: how far the probability of the first choice is from how often it is right."
    )
    return "\n".join([*lines, "", legend, "", f"Quantiles of p, of {CONTENT if apart else 'all tokens'}: {quantiles}."])


def _with_bounds(group: GroupReading) -> str:
    bounds = group.mean_p_interval
    within = "" if bounds is None else f" [{probability(bounds[0])}, {probability(bounds[1])}]"
    return f"{probability(group.mean_p)}{within}"


def _rate(reading: RateReading) -> str:
    lines = [f"**{reading.rate:.2g} is {reading.verdict}.** {reading.why}"]
    if reading.verdict == "diverges at once":
        lines = [reading.why]
    elif reading.verdict == "unknown":
        lines = [f"**Whether {reading.rate:.2g} is sane is not known.** {reading.why}"]
    if reading.lowest is not None and reading.suggestion is not None:
        lines.append(
            f"The curve is of the training loss at {len(reading.curve)} rates from {reading.rates[0]:.2g} to "
            f"{reading.rates[len(reading.curve) - 1]:.2g}, each point the mean of a loss and its two neighbours:\n\n"
            f"- it is lowest at {reading.lowest:.2g} ({min(reading.curve):.2f} nats per token), which is no rate to "
            "train at\n"
            f"- a tenth of that is {reading.suggestion:.2g}: a careful rate to begin with, not the best one"
        )
        lines.append(f"How good such a rate is, {RATES_HERE.kind}: {RATES_HERE.what} {RATES_HERE.link}")
    return "\n\n".join(lines)


def _cost(cost: Cost) -> str:
    lines = [
        f"- {cost.seconds_per_step:.2f} s an optimizer step (median of {cost.measured_steps}, on {cost.device})",
        f"- peak memory of {'this process' if cost.device.startswith('cpu') else 'the GPU'} during this survey: "
        f"{cost.peak_memory / 2**30:.2f} GiB, measured. Up to {cost.copy_memory / 2**30:.2f} GiB of it was a copy of "
        "what trains, which a fit does not hold",
    ]
    if cost.seconds is None:
        lines.append("- the number of steps is not known, so neither is the time of the fit")
    else:
        validations = f", {plural(cost.validations, 'validation')}" if cost.validations else ""
        validations += ", the first of them before the first step" if cost.validates_first else ""
        lines.append(
            f"- the whole fit, {plural(cost.steps or 0, 'step')}{validations}: about {duration(cost.seconds)}"
            f"{_parts(cost)}. Not in it: loading the model, what monitors read before and after, the answers that "
            "validations generate, and saving"
        )
    return "\n".join(lines)


def _parts(cost: Cost) -> str:
    """Return how much of a fit is training, and how much validation."""
    if not cost.validations or cost.seconds_per_validation is None or cost.steps is None:
        return ""
    training, validating = cost.steps * cost.seconds_per_step, cost.validations * cost.seconds_per_validation
    return f" ({duration(training)} of training, {duration(validating)} of validation)"


def _fenced(text: str) -> str:
    """Return text in a fence that no fence within it ends."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
