"""Whether the learning rate of a run is sane, by the curve of a short range test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from lightning_sft.sweep.results import RangeTest
from lightning_sft.sweep.suggest import Suggestions

Verdict = Literal["sane", "at the edge", "too high", "very low", "unknown", "diverges at once"]
#: what a curve calls the rate at which it begins to rise
EDGE = "edge"
#: steps of a range test in which a curve can show anything
_FEWEST = 4
#: factor between two rates of a range test above which so few steps say nothing of where it diverges
_COARSE = 5.0
#: a rate this many times below the suggested one is called very low; ours
_VERY_LOW = 30.0
#: a rate up to this many times that at which the loss turns is at the edge, and not yet called too high; ours: the test
#: has no warm-up, each of its steps another batch, and its rates a distance of their own
_EDGE = 3.0
#: what the loss must fall by, as a share of its start, before the curve says anything; ours
_FALL = 0.02
#: times the loss before, above which a curve has never come back; ours: training has noise and dropout
_RISEN = 1.1


@dataclass(frozen=True)
class RateReading:
    """What a range test says of a learning rate.

    Attributes:
        rate: of the run.
        verdict: on it.
        why: a sentence or two.
        suggestion: a rate that the curve speaks for; None if it speaks for none.
        suggestions: all of the curve's.
        rates: of each step.
        losses: after the step at each rate; the last may be nan or inf.
    """

    rate: float
    verdict: Verdict
    why: str
    suggestion: float | None
    suggestions: dict[str, float]
    rates: list[float]
    losses: list[float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dict(vars(self))


def judge_rate(rate: float, test: RangeTest, before: float | None = None) -> RateReading:
    """Return what a range test says of a learning rate.

    Args:
        rate: of the run, at its peak.
        test: with rising rates; a trial that diverged ends early, or with a loss that is no number.
        before: loss before the first of its steps, in nats per token; None if unknown.
    """
    suggestion = _suggestion(test.suggestions)
    finite = [loss for loss in test.smoothed if math.isfinite(loss)]

    def reading(verdict: Verdict, why: str, taken: float | None = suggestion) -> RateReading:
        return RateReading(rate, verdict, why, taken, test.suggestions.values(), test.rates, test.losses)

    step = test.rates[1] / test.rates[0] if len(test.rates) > 1 else 1.0
    if len(finite) < _FEWEST and step > _COARSE:
        return reading(
            "unknown",
            f"The range test took {len(test.losses)} steps, each at {step:.0f} times the rate of the one before: too "
            "coarse to read. Take more of them: --range_steps.",
            None,
        )
    risen = before is not None and bool(finite) and min(finite) > _RISEN * before
    if len(finite) < _FEWEST or risen:
        reached = f"{test.rates[0]:.2g}" if test.rates else "the lowest rate"
        how = (
            f"never came back to the {before:.2f} that it was before" if risen else f"ended in {len(test.losses)} steps"
        )
        return reading(
            "diverges at once",
            f"The range test diverges at once, from {reached} on, and {how}: the loss blows up at every rate that was "
            "tried. Look for another cause than the rate: data that are no text, 16-bit arithmetic, weights "
            "that are damaged. Or begin lower: --range_low.",
            None,
        )
    best = min(range(len(finite)), key=finite.__getitem__)
    if finite[0] - finite[best] < _FALL * abs(finite[0]):
        return reading(
            "unknown",
            f"Between {test.rates[0]:.2g} and {test.rates[-1]:.2g} the loss fell by less than {_FALL:.0%} in "
            f"{len(test.losses)} steps, so the curve says nothing about the rate. A longer test might: --range_steps.",
            None,
        )
    # smoothing moves the minimum to the right of where the loss itself turned
    turn = min(test.rates[best], test.suggestions.edge or test.rates[best])
    if rate >= turn and (best + 1 < len(finite) or len(finite) < len(test.losses)):
        turns = f"The loss of the range test falls up to {turn:.2g} and rises beyond"
        if rate <= max(_EDGE, test.rates[1] / test.rates[0]) * turn:
            return reading(
                "at the edge",
                f"{turns}, which is about where {rate:.2g} is. In a run it may well work, above all with warm-up: the "
                "test has none, and takes one step at each rate. If the run turns out unstable, take "
                f"{'a lower one' if suggestion is None else f'{suggestion:.2g}'}.",
            )
        return reading(
            "too high",
            f"{turns}; {rate:.2g} is {_times(rate / turn)} times that. Expect an unstable run, or one that diverges.",
        )
    if suggestion is not None and rate < suggestion / _VERY_LOW:
        return reading(
            "very low",
            f"The curve speaks for about {suggestion:.2g}, {_times(suggestion / rate)} times as much. At {rate:.2g} "
            "the run will move little.",
        )
    return reading("sane", _why_sane(rate, turn, test.suggestions.values()))


def _why_sane(rate: float, turn: float, suggestions: dict[str, float]) -> str:
    """Return why a rate may stay, and what suggestions of other rates have to do with it."""
    said = f"The loss falls there, and falls on up to {turn:.2g}"
    said += f", {_times(turn / rate)} times as much." if turn > rate else "."
    rules = [value for name, value in suggestions.items() if name != EDGE]  # the edge is no rate to take
    lower = sorted(value for value in rules if value < rate)
    if not lower:
        return said
    whose = "The rules below name" if len(lower) == len(rules) else "Some of the rules below name"
    return (
        f"{said} {whose} lower rates ({_span(lower)}) because they leave a margin on purpose: a rate that rises from "
        "step to step meets the edge late. Go there if the run turns out unstable; they are nothing against "
        f"{rate:.2g}. Such a test says which rates break, not which is best: `lightning compare` finds the best one "
        "of each objective."
    )


def _span(rates: list[float]) -> str:
    lowest, highest = f"{rates[0]:.2g}", f"{rates[-1]:.2g}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _times(factor: float) -> str:
    """Return a factor in two digits, as people write it."""
    return f"{factor:.1f}" if factor < 9.95 else f"{float(f'{factor:.2g}'):,.0f}"


def _suggestion(found: Suggestions) -> float | None:
    """Return the rate to take: a tenth of that at the minimum, the most cautious of the usual rules, else another."""
    values = found.values()
    return next((values[name] for name in ("minimum_tenth", "valley", "steepest") if name in values), None)
